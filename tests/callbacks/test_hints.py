"""Which setting a hint names, and which value, by what the completions are like."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo_lightning.callbacks.hints import about_silence, about_truncation, likeness
from grpo_lightning.rollout import Experience, Recipe, SamplingParams
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict

TOKENS = 10


def completions(
    temperature: float, alike: bool = False, logprob: float = -0.5, cut: bool = False, size: int = 4, **verdict: Any
) -> Experience:
    """Two groups of completions with one verdict, and the reward that goes with it."""
    judged = Verdict(**{"correct": False, "format_valid": False} | verdict)
    attempts = [
        Attempt(
            Prompt([]), [2], key=f"train/0/{row}", group=str(row // size),
            completion=Completion(
                list(range(TOKENS)) if alike else list(range(row * TOKENS, (row + 1) * TOKENS)), "",
                FinishReason.LENGTH if cut else FinishReason.STOP, [logprob] * TOKENS, [logprob] * TOKENS,
            ),
            verdict=judged, reward=1.0 if judged.correct else 0.5 if judged.format_valid else 0.0,
        )
        for row in range(2 * size)
    ]  # fmt: skip
    recipe = Recipe("train", size, SamplingParams(temperature, max_new_tokens=TOKENS))
    return experience_of(attempts, recipe, {"rollout": 0.0, "verify": 0.0}, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("sampled", "wanted"),
    [
        ({"temperature": 0.1, "alike": True}, "nearly the same: raise data.sampling.temperature from 0.1 to 0.6"),
        ({"temperature": 0.6, "alike": True}, "nearly the same: raise data.sampling.temperature from 0.6 to 0.8"),
        ({"temperature": 0.9, "alike": True}, "nearly the same: raise data.sampling.temperature from 0.9 to 1"),
        ({"temperature": 1.0, "alike": True, "format_valid": True}, "0 of 8 are correct: raise data.group_size from 4"),
        ({"temperature": 1.0, "logprob": -4.9}, "log-prob of -4.9 .*lower data.sampling.temperature from 1 to 0.6"),
        ({"temperature": 1.5, "logprob": -7.0, "cut": True}, "is random, .*temperature from 1.5 to 0.6"),
        ({"temperature": 0.5, "logprob": -2.5}, "lower data.sampling.temperature from 0.5 to 0.25"),
        ({"temperature": 1.0}, "no completion has the format .*data.task.init_args.system_prompt"),
        ({"temperature": 1.0, "format_valid": True}, "0 of 8 are correct: raise data.group_size from 4 to 8"),
        ({"temperature": 1.0, "cut": True}, "raise data.sampling.max_new_tokens from 10 to 20"),
        ({"temperature": 0.1, "cut": True, "correct_but_truncated": True}, "8 of these 8 hold the right answer"),
        ({"temperature": 1.0, "correct": True, "format_valid": True}, "take harder ones"),
        ({"temperature": 1.0, "correct": True, "format_valid": True, "cut": True}, "take harder ones"),
    ],
)  # fmt: skip
def test_what_to_do_without_a_signal(sampled: dict[str, Any], wanted: str) -> None:
    said = about_silence(completions(**sampled))
    assert re.search(wanted, said), said
    assert ("raise data.sampling.temperature" in said) is ("raise data.sampling.temperature" in wanted)


@pytest.mark.parametrize(
    ("sampled", "wanted"),
    [
        ({"temperature": 1.0}, "raise data.sampling.max_new_tokens from 10 to 20"),
        ({"temperature": 0.1, "alike": True}, "raise data.sampling.max_new_tokens from 10 to 20"),
        ({"temperature": 1.5, "logprob": -7.0}, "lower data.sampling.temperature from 1.5 to 0.6"),
        ({"temperature": 1.5, "logprob": -7.0, "correct_but_truncated": True}, "ask in the prompt to stop"),
    ],
)
def test_what_to_do_about_truncation(sampled: dict[str, Any], wanted: str) -> None:
    assert wanted in about_truncation(completions(cut=True, **sampled))


def test_completions_that_end_without_the_format_need_more_than_a_higher_cap() -> None:
    cut, ended = completions(1.0, cut=True), completions(1.0)
    mixed = replace(cut, attempts=[*cut.attempts[:5], *ended.attempts[5:]])
    said = about_truncation(mixed)
    assert said.startswith(
        "raise data.sampling.max_new_tokens from 10 to 20, and state in the prompt (data.task.init_args"
    )
    assert said.endswith("none of the 3 completions that ended has it")
    ended = completions(1.0, format_valid=True)
    assert "format" not in about_truncation(replace(cut, attempts=[*cut.attempts[:5], *ended.attempts[5:]]))


def test_where_no_groups_are_compared_no_larger_group_is_asked_for() -> None:
    said = about_silence(completions(1.0, format_valid=True, size=1), groups=False)
    assert said.startswith("0 of 2 are correct: take easier prompts")


def test_a_rank_without_the_truncated_rows_says_what_is_true_of_the_others_too() -> None:
    assert about_truncation(completions(1.0)).startswith("raise data.sampling.max_new_tokens")
    broken = completions(1.0, error="gone")
    assert about_silence(broken).startswith("0 of 0 are correct: raise data.group_size")


def test_likeness_is_that_of_trigrams_within_a_group() -> None:
    attempts = completions(1.0, alike=True, size=2).attempts
    other = completions(1.0, size=2).attempts
    assert likeness([attempts]) == 1.0
    assert likeness([other]) == 0.0
    # By hand: 0-9 and 10-19 share nothing, 0-9 and 0-9 all: one pair of three is equal.
    assert likeness([[attempts[0], attempts[1], other[1]]]) == pytest.approx(1 / 3)
    assert likeness([[attempts[0]], [attempts[1]]]) == 0.0
