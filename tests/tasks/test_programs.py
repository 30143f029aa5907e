from __future__ import annotations

import re
from typing import Any

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Programs, check_controls
from grpo_lightning.types import Prompt, Sample
from grpo_lightning.verifiers import CodeVerifier, judge

SMALL = {"train_size": 300, "val_size": 50, "test_size": 60, "prompt_template": "{prompt}"}


def text(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


def asserts(prompt: Prompt) -> str:
    lines: str = prompt.metadata["tests"]
    return lines


def obey(prompt: Prompt, x: int) -> int:
    """Apply the steps that the words describe, in their order."""
    for phrase in text(prompt).split(", then "):
        number = int((re.findall(r"\d+", phrase) or [0])[0])
        x = {
            "add": x + number, "increase": x + number, "subtract": x - number, "decrease": x - number,
            "multiply": x * number, "double": x * 2, "triple": x * 3, "square": x * x,
        }[phrase.split()[0]]  # fmt: skip
    return x


def function(prompt: Prompt) -> Any:
    assert prompt.solution is not None
    namespace: dict[str, Any] = {}
    exec(prompt.solution, namespace)
    return namespace[prompt.metadata["entry_point"]]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_reference_does_what_the_words_say(seed: int) -> None:
    for prompt in Programs(seed=seed, **SMALL, max_steps=5).prompts("train"):
        f = function(prompt)
        assert [f(x) for x in range(-20, 20)] == [obey(prompt, x) for x in range(-20, 20)]


def test_the_tests_check_what_the_words_say() -> None:
    for prompt in Programs(**SMALL).prompts("train"):
        lines = re.findall(r"^assert f\((-?\d+)\) == (-?\d+)$", asserts(prompt), re.MULTILINE)
        assert len(lines) == asserts(prompt).count("\n") + 1 >= 5
        assert all(obey(prompt, int(x)) == int(y) for x, y in lines)


def test_parentheses_appear_only_where_they_matter() -> None:
    for prompt in Programs(**SMALL).prompts("train"):
        assert prompt.solution is not None
        expression = prompt.solution.split("return ")[1]
        for match in re.finditer(r"\(", expression):
            closing = expression.index(")", match.start())
            bare = expression[: match.start()] + expression[match.start() + 1 : closing] + expression[closing + 1 :]
            if bare.count("(") == bare.count(")") == 0:
                assert any(eval(bare, {"x": x}) != obey(prompt, x) for x in range(5))


def test_splits_share_no_function_whatever_the_seeds() -> None:
    functions = {
        split: {asserts(prompt) for seed in range(3) for prompt in Programs(seed=seed, train_size=1000).prompts(split)}
        for split in ("train", "val", "test")
    }
    assert not functions["train"] & functions["val"]
    assert not functions["train"] & functions["test"]
    assert not functions["val"] & functions["test"]


def test_functions_are_distinct_and_sizes_are_honoured() -> None:
    task = Programs(train_size=2000, val_size=5, test_size=3)
    assert len({asserts(prompt) for prompt in task.prompts("train")}) == 2000
    assert [len(task.prompts(split)) for split in ("val", "test")] == [5, 3]


def test_a_seed_repeats_and_two_seeds_differ() -> None:
    assert Programs(seed=3, **SMALL).prompts("train") == Programs(seed=3, **SMALL).prompts("train")
    assert Programs(seed=3, **SMALL).prompts("train") != Programs(seed=4, **SMALL).prompts("train")


def test_difficulty_options_hold() -> None:
    task = Programs(**SMALL, min_steps=3, max_steps=4, max_operand=50, squares=False)
    texts = [text(prompt) for prompt in task.prompts("train")]
    assert {text.count(", then ") for text in texts} == {2, 3}
    assert max(int(number) for text in texts for number in re.findall(r"\d+", text)) == 50
    assert not any("square" in text for text in texts)
    texts = [text(prompt) for prompt in Programs(**SMALL, max_factor=1).prompts("train")]
    assert not any(re.search("multiply|double|triple", text) for text in texts)
    assert max(text.count("square") for text in texts) == 1


def test_gold_answers_pass_the_verifier_and_others_do_not() -> None:
    task, verifier = Programs(train_size=20, val_size=20, test_size=20), CodeVerifier()
    assert list(check_controls(task, [verifier])) == []
    prompts = task.prompts("train")
    completions = ["def f(x):\n    return x", *(prompt.solution or "" for prompt in prompts)]
    samples = [
        Sample(prompt.messages, completion, metadata=prompt.metadata)
        for prompt, completion in zip(prompts, completions, strict=False)
    ]
    assert [(verdict.correct, verdict.format_valid) for verdict in judge(verifier, samples)] == [(False, True)] * 20
    verifier.stop()


def test_more_functions_than_exist() -> None:
    task = Programs(val_size=1000, min_steps=1, max_steps=1, max_operand=9)
    with pytest.raises(ConfigError, match=r"init_args\.val_size: 1000 is too many.*raise max_operand, max_factor"):
        task.prompts("val")


@pytest.mark.parametrize(
    "option", ["train_size", "val_size", "test_size", "min_steps", "max_steps", "max_operand", "max_factor"]
)
def test_an_impossible_option_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.{option}: 0 must be at least"):
        Programs(**{option: 0})
