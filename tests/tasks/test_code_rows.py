"""Rows in the formats of MBPP and HumanEval, from small files."""

from __future__ import annotations

from typing import Any

import pytest
from rows import WriteRows

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import MBPP, HumanEval, check_controls
from grpo_lightning.tasks.mbpp import SYSTEM_PROMPT
from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier

FULL = {
    "task_id": 1, "text": "Write a function to add one to a number.",
    "code": "def add_one(n):\r\n    return n + ONE - ONE + 1\r\nONE = 1",
    "test_list": ["assert add_one(1) == 2", "assert add_one(-1) == 0", "assert add_one(9) == 10"],
    "test_setup_code": "", "challenge_test_list": [],
}  # fmt: skip
SANITIZED = {
    "task_id": 2, "source_file": "a.ipynb", "prompt": "Write a function to find the area of a circle.",
    "code": "import math\ndef area(r):\n    return math.pi * r * r",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(area(1), math.pi)", "assert area(0) == 0"],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "Mine/0",
    "prompt": (
        "from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n\n\n"
        'def middle(xs: List[int]) -> float:\n    """The mean.\n    >>> middle([1, 2])\n    1.5\n    """\n'
    ),
    "canonical_solution": "    return total(xs) / len(xs)\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 1.5\n"
    "    assert candidate([4, 6]) * 2 == total([4, 6])\n",
    "entry_point": "middle",
}


@pytest.mark.parametrize("row", [FULL, SANITIZED], ids=["full", "sanitized"])
def test_mbpp_gold_programs_pass(write_jsonl: WriteRows, row: dict[str, Any]) -> None:
    for split in ("train", "validation", "test"):
        folder = write_jsonl(f"{split}.jsonl", [row]).parent
    assert list(check_controls(MBPP(str(folder)), [CodeVerifier()])) == []


def test_an_mbpp_row_becomes_a_prompt(write_jsonl: WriteRows) -> None:
    path = str(write_jsonl("test.jsonl", [FULL]).parent)
    (prompt,) = MBPP(path).prompts("test")
    assert prompt.messages == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{FULL['text']}\n\nThe program must pass tests such as:\nassert add_one(1) == 2"},
    ]
    assert prompt.metadata == {"tests": "\n".join(FULL["test_list"])}
    assert prompt.solution == "```python\ndef add_one(n):\n    return n + ONE - ONE + 1\nONE = 1\n```"
    (shown,) = MBPP(path, show_tests=3).prompts("test")
    assert shown.messages[1]["content"].endswith("\n".join(FULL["test_list"]))


def test_imports_and_setup_come_before_the_tests(write_jsonl: WriteRows) -> None:
    row = SANITIZED | {"test_setup_code": "HALF = 0.5"}
    (prompt,) = MBPP(str(write_jsonl("test.jsonl", [row]).parent)).prompts("test")
    assert prompt.metadata["tests"].splitlines() == ["import math", "HALF = 0.5", *SANITIZED["test_list"]]


def test_mbpp_options(write_jsonl: WriteRows) -> None:
    path = str(write_jsonl("mbpp.jsonl", [FULL | {"text": f"Task {n}."} for n in range(10)]))
    task = MBPP(path, val_size=4, limit=5)
    train, val = ([prompt.messages[1]["content"] for prompt in task.prompts(split)] for split in ("train", "val"))
    assert (len(train), len(val)) == (5, 4)
    assert not set(train) & set(val)
    assert [m["role"] for m in MBPP(path, val_size=4, system_prompt=None).prompts("val")[0].messages] == ["user"]
    with pytest.raises(ConfigError, match=r"init_args\.show_tests: 0 must be at least 1"):
        MBPP(path, show_tests=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Do.", "code": "x = 1"}, r"init_args\.path: the data set has no column 'test_list'; it has: pr"),
        (FULL | {"test_list": []}, r"row 1 of .*test\.jsonl has no assert lines in column 'test_list'"),
        (FULL | {"test_list": "assert 1"}, r"row 1 of .*test\.jsonl: column 'test_list' is not a list of strings"),
        (FULL | {"code": ""}, r"row 1 of .*test\.jsonl has no value in column 'code'"),
    ],
)
def test_an_unusable_mbpp_row_is_named(write_jsonl: WriteRows, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MBPP(str(write_jsonl("test.jsonl", [row]).parent)).prompts("test")


def test_humaneval_gold_programs_pass(write_jsonl: WriteRows) -> None:
    folder = write_jsonl("test.jsonl", [HUMANEVAL]).parent
    assert list(check_controls(HumanEval(str(folder)), [CodeVerifier()], ["test"])) == []


def test_a_humaneval_row_becomes_a_prompt(write_jsonl: WriteRows) -> None:
    (prompt,) = HumanEval(str(write_jsonl("test.jsonl", [HUMANEVAL]).parent)).prompts("test")
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[1]["content"] == f"Complete this function:\n\n```python\n{HUMANEVAL['prompt'].strip()}\n```"
    assert prompt.metadata["entry_point"] == "middle"
    assert prompt.solution is not None
    assert prompt.solution.endswith("    return total(xs) / len(xs)\n```")


def test_the_tests_use_their_own_copies_of_the_helpers(write_jsonl: WriteRows) -> None:
    (prompt,) = HumanEval(str(write_jsonl("test.jsonl", [HUMANEVAL]).parent)).prompts("test")
    cheat = "```python\ndef total(xs):\n    return 3 if xs == [4, 6] else 0\ndef middle(xs):\n    return 1.5\n```"
    verdict = CodeVerifier().verify(Sample(prompt.messages, cheat, metadata=prompt.metadata))
    assert (verdict.correct, verdict.format_valid) == (False, True)


def test_an_unusable_humaneval_row_is_named(write_jsonl: WriteRows) -> None:
    path = str(write_jsonl("test.jsonl", [HUMANEVAL | {"prompt": "def f(:"}]).parent)
    with pytest.raises(ConfigError, match=r"row 1 of .*test\.jsonl: column 'prompt' is not Python"):
        HumanEval(path).prompts("test")
    path = str(write_jsonl("test.jsonl", [FULL]).parent)
    with pytest.raises(ConfigError, match=r"has no column 'prompt'"):
        HumanEval(path).prompts("test")
