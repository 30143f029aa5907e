"""What every task's prompt says, prompt templates, and worked examples before the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rows import WriteRows

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import GSM8K, MBPP, Arithmetic, Extraction, HumanEval, Programs, Tabular, Task
from grpo_lightning.tasks.base import SPLITS
from grpo_lightning.types import Prompt

SIZES = {"train_size": 40, "val_size": 8, "test_size": 8}
KEY = r"data\.task\.init_args\."
PUBLISHED: dict[type[Task], dict[str, Any]] = {
    GSM8K: {"question": "How many?", "answer": "One.\n#### 1"},
    MBPP: {"text": "Return n.", "code": "def f(n):\n    return n", "test_list": ["assert f(1) == 1"]},
    HumanEval: {
        "prompt": 'def f(n):\n    """Return n."""\n', "canonical_solution": "    return n\n", "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    },
}  # fmt: skip
TASKS: list[type[Task]] = [Arithmetic, Programs, Extraction, *PUBLISHED]

Make = Callable[..., Task]


@pytest.fixture
def make(write_jsonl: WriteRows) -> Make:
    """Make a task of a class, with 12 train rows and 2 test rows where it reads a file."""

    def make_task(task: type[Task], **options: Any) -> Task:
        if task not in PUBLISHED:
            return task(**SIZES, **options)
        # The rows differ in their text.
        column = next(iter(PUBLISHED[task]))
        rows = [PUBLISHED[task] | {column: f"{PUBLISHED[task][column]}# {n}"} for n in range(14)]
        write_jsonl("rows/test.jsonl", rows[12:])
        folder = write_jsonl("rows/train.jsonl", rows[:12]).parent
        return task(str(folder), val_size=2, **options)  # type: ignore[call-arg]

    return make_task


def user(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


@pytest.mark.parametrize(
    ("task", "asks_for"),
    [(Arithmetic, "in the form: #### N"), (GSM8K, "in the form: #### N"), (Programs, "the code of the function"),
     (MBPP, "starts with ```python"), (HumanEval, "starts with ```python"), (Extraction, "as one JSON object")],
)  # fmt: skip
def test_a_prompt_says_in_which_format_to_answer(make: Make, task: type[Task], asks_for: str) -> None:
    for prompt in make(task).prompts("test"):
        assert asks_for in "\n".join(message["content"] for message in prompt.messages)


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_template_replaces_the_tasks_own_words(make: Make, task: type[Task]) -> None:
    bare = [user(prompt) for prompt in make(task, prompt_template="{prompt}").prompts("val")]
    own = [user(prompt) for prompt in make(task).prompts("val")]
    framed = [user(prompt) for prompt in make(task, prompt_template="Say {{}}: {prompt}!").prompts("val")]
    assert framed == [f"Say {{}}: {text}!" for text in bare]
    assert all(text in whole for text, whole in zip(bare, own, strict=True))
    assert len(set(bare)) == len(bare)


def test_extraction_shows_one_worked_example_unless_told_otherwise() -> None:
    assert [len(Extraction(**SIZES, **options).prompts("val")[0].messages) for options in ({}, {"shots": 0})] == [3, 1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Solve it.", r"does not contain \{prompt\}, so all prompts would be the same"),
        (
            "{prompt} {answer}",
            r"\{answer\} is not a placeholder of Arithmetic; use \{prompt\}, or write \{\{answer\}\}",
        ),
        ("{prompt", r"has a single '\{'"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=KEY + r"prompt_template: .*" + message):
        Arithmetic(prompt_template=template)


@pytest.mark.parametrize("task", TASKS)
def test_shots_are_the_same_rows_everywhere_and_in_no_split(make: Make, task: type[Task]) -> None:
    options = {"system_prompt": "Be exact."}
    plain = {split: make(task, **options).prompts(split) for split in SPLITS}
    shown = {split: make(task, shots=3, **options).prompts(split) for split in SPLITS}
    examples = shown["val"][0].messages[1:-1]
    assert [message["role"] for message in examples] == ["user", "assistant"] * 3
    for split in SPLITS:
        for prompt in shown[split]:
            assert prompt.messages[:-1] == [{"role": "system", "content": "Be exact."}, *examples]
            assert user(prompt) not in {example["content"] for example in examples}
            assert (prompt.shots, prompt.is_text) == (3, True)
    for split in ("val", "test"):
        assert [user(prompt) for prompt in shown[split]] == [user(prompt) for prompt in plain[split]]
    # The answers are the rows' own solutions.
    solutions = {user(prompt): prompt.solution for split in SPLITS for prompt in plain[split]}
    for question, answer in zip(examples[::2], examples[1::2], strict=True):
        assert solutions.get(question["content"], answer["content"]) == answer["content"]
    assert make(task, shots=3, **options).prompts("train") == shown["train"]


def test_shots_of_a_file_leave_the_train_split(make: Make) -> None:
    task = make(GSM8K, shots=3)
    assert [len(task.prompts(split)) for split in SPLITS] == [7, 2, 2]


def test_a_chat_is_a_worked_example_too() -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm?"},
        {"role": "user", "content": "7?"},
    ]
    task = Tabular([{"prompt": chat, "answer": "7"}] * 4, val_size=1, shots=1)
    prompt = task.prompts("val")[0]
    assert prompt.messages == [*chat, {"role": "assistant", "content": "#### 7"}, *chat]
    assert not prompt.is_text


def test_evaluated_rows_are_never_examples() -> None:
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(8)]
    task = Tabular(rows, splits={"val": "train", "test": "train"}, shots=2)
    for split in SPLITS:
        prompts = task.prompts(split)
        assert len(prompts) == 6
        assert not {prompt.messages[0]["content"] for prompt in prompts} & {user(prompt) for prompt in prompts}


def test_a_stream_is_read_far_enough_for_shots() -> None:
    rows = ({"prompt": f"{n}?", "answer": str(n)} for n in range(100))
    assert len(Tabular(rows, val_size=2, limit=5, shots=3).prompts("train")) == 5


@pytest.mark.parametrize(
    ("shots", "message"),
    [(-1, "must be at least 0"), (10, "leaves none of 10 rows to train on; lower it")],
)
def test_impossible_shots_of_a_file(make: Make, shots: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{KEY}shots: {shots} {message}"):
        make(GSM8K, shots=shots).prompts("val")


@pytest.mark.parametrize(
    ("shots", "message"),
    [(-1, "must be at least 0"), (999, "is too many; .* lower it or raise max_items or max_count")],
)
def test_impossible_shots_of_a_generated_task(shots: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{KEY}shots: {shots} {message}"):
        Extraction(**SIZES, max_items=1, max_count=2, shots=shots).prompts("val")


def test_shots_need_train_rows_with_solutions(write_jsonl: WriteRows) -> None:
    path = str(write_jsonl("only/test.jsonl", [PUBLISHED[HumanEval]]).parent)
    with pytest.raises(ConfigError, match=rf"{KEY}shots: .* has no train split to take worked examples from"):
        HumanEval(path, shots=1).prompts("test")
    rows = [{"prompt": f"{n}?"} for n in range(5)]
    with pytest.raises(ConfigError, match=rf"{KEY}shots: row \d of .* has no solution to show; name its column with"):
        Tabular(rows, val_size=1, shots=1).prompts("val")
