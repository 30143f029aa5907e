from __future__ import annotations

import re

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Arithmetic, check_controls
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers import MathVerifier

SMALL = {"train_size": 300, "val_size": 50, "test_size": 60, "prompt_template": "{prompt}"}


def numbers(prompt: Prompt) -> list[str]:
    return re.findall(r"\d+", prompt.messages[-1]["content"])


def equations(prompt: Prompt) -> list[str]:
    assert prompt.solution is not None
    return prompt.solution.split("\n")[:-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_worked_line_is_true_and_follows_from_the_text(seed: int) -> None:
    for prompt in Arithmetic(seed=seed, **SMALL).prompts("train"):
        value, *operands = numbers(prompt)
        assert len(equations(prompt)) == len(operands)
        for line, operand in zip(equations(prompt), operands, strict=True):
            left, result = line.split("=")
            first, sign, second = re.split(r"([-+*])", left)
            assert (first, second) == (value, operand)
            computed = {"+": int(first) + int(second), "-": int(first) - int(second), "*": int(first) * int(second)}
            assert computed[sign] == int(result) >= 0
            value = result
        assert prompt.solution is not None
        assert prompt.solution.endswith(f"\n#### {value}")
        assert prompt.answer == value


def test_words_agree_with_the_operation() -> None:
    meaning = {"more": "+", "finds": "+", "sells": "-", "loses": "-", "gives": "-", "times": "*"}
    for prompt in Arithmetic(**SMALL).prompts("train"):
        sentences = prompt.messages[-1]["content"].split(". ")[1:-1]
        for sentence, line in zip(sentences, equations(prompt), strict=True):
            assert {meaning[word] for word in re.findall(r"\w+", sentence) if word in meaning} == set(
                re.findall(r"[-+*]", line)
            )


def test_splits_share_no_problem_whatever_the_seeds() -> None:
    problems = {
        split: {tuple(equations(prompt)) for seed in range(3) for prompt in Arithmetic(seed=seed).prompts(split)}
        for split in ("train", "val", "test")
    }
    assert not problems["train"] & problems["val"]
    assert not problems["train"] & problems["test"]
    assert not problems["val"] & problems["test"]


def test_problems_are_distinct() -> None:
    prompts = Arithmetic(**SMALL).prompts("train")
    assert len({tuple(equations(prompt)) for prompt in prompts}) == len(prompts)


def test_sizes_are_honoured() -> None:
    task = Arithmetic(train_size=7, val_size=5, test_size=3)
    assert [len(task.prompts(split)) for split in ("train", "val", "test")] == [7, 5, 3]


def test_a_seed_repeats_and_two_seeds_differ() -> None:
    assert Arithmetic(seed=3, **SMALL).prompts("train") == Arithmetic(seed=3, **SMALL).prompts("train")
    assert Arithmetic(seed=3, **SMALL).prompts("train") != Arithmetic(seed=4, **SMALL).prompts("train")


def test_difficulty_options_hold() -> None:
    task = Arithmetic(**SMALL, min_steps=4, max_steps=5, max_operand=30, max_factor=4, max_value=40)
    prompts = task.prompts("train")
    assert {len(equations(prompt)) for prompt in prompts} == {4, 5}
    values = {int(number) for prompt in prompts for line in equations(prompt) for number in re.findall(r"\d+", line)}
    assert max(values) == 40
    factors = {int(factor) for prompt in prompts for factor in re.findall(r"\*(\d+)", prompt.solution or "")}
    assert factors == {2, 3, 4}
    assert max(int(number) for prompt in prompts for number in numbers(prompt)) == 30


def test_factor_1_disables_multiplication() -> None:
    assert not any("*" in (prompt.solution or "") for prompt in Arithmetic(**SMALL, max_factor=1).prompts("train"))


def test_the_system_prompt_comes_first() -> None:
    prompt = Arithmetic(**SMALL, system_prompt="Be brief.").prompts("val")[0]
    assert prompt.messages[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in prompt.messages] == ["system", "user"]


def test_more_problems_than_exist() -> None:
    task = Arithmetic(train_size=1000, min_steps=1, max_steps=1, max_operand=5)
    with pytest.raises(ConfigError, match=r"data\.task\.init_args\.train_size: 1000 is too many.*raise max_operand"):
        task.prompts("train")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_size", 0),
        ("val_size", -1),
        ("test_size", 0),
        ("min_steps", 0),
        ("max_steps", 1),
        ("max_operand", 0),
        ("max_factor", 0),
        ("max_value", 1),
    ],
)
def test_an_impossible_option_is_named(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.{option}: {value} must be at least"):
        Arithmetic(**{option: value})


def test_gold_answers_pass_the_verifier() -> None:
    assert list(check_controls(Arithmetic(**SMALL), [MathVerifier()])) == []
