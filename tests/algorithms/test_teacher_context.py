"""What a teacher reads: feedback, a solved sibling, and the gold answer only where the option says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from grpo_lightning.algorithms import FeedbackContext
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.refinement import NO_FEEDBACK
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {hints}?"}]


def attempt(correct: bool = False, group: str = "0", **changes: Any) -> Attempt:
    completion = Completion([1], "It is 41." if not correct else "It is GOOD.", FinishReason.STOP, [0.0], [0.0])
    verdict = Verdict(correct, True, feedback="" if correct else "41 is odd.")
    made = Attempt(
        Prompt(CHAT, answer={"gold": 42}, solution="SOLVED"), [2], group=group, completion=completion, verdict=verdict,
        reward=float(correct),
    )  # fmt: skip
    return replace(made, **changes)


def read(attempts: list[Attempt], **options: Any) -> list[str | None]:
    contexts = FeedbackContext(**options).contexts(attempts, TOKENIZER)
    return [None if ids is None else TOKENIZER.decode(ids) for ids in contexts]


def turn(hints: str) -> str:
    return (
        "<|startoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is {hints}?\n\n"
        f"{hints}\n\nSolve the original problem correctly.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_feedback_of_failures_alone() -> None:
    attempts = [attempt(), attempt(correct=True)]
    assert read(attempts) == [turn("Feedback on an earlier attempt: 41 is odd."), None]
    silent = attempt(verdict=Verdict(False, True))
    assert read([silent]) == [turn(f"Feedback on an earlier attempt: {NO_FEEDBACK}")]


def test_a_solved_sibling_is_of_the_same_group() -> None:
    attempts = [attempt(), attempt(correct=True), attempt(group="1"), attempt(correct=True, group="2")]
    shown = "A correct solution:\nIt is GOOD."
    assert read(attempts, feedback=False, solved_sibling=True) == [turn(shown), None, None, None]
    both = read(attempts, solved_sibling=True)
    feedback = "Feedback on an earlier attempt: 41 is odd."
    assert both == [turn(f"{shown}\n\n{feedback}"), None, turn(feedback), None]


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("sibling", [False, True])
def test_the_gold_answer_is_shown_only_if_it_is_asked_for(feedback: bool, sibling: bool) -> None:
    attempts = [attempt(), attempt(correct=True)]
    options = {"feedback": feedback, "solved_sibling": sibling}
    if feedback or sibling:
        (without, _) = read(attempts, **options)
        assert without is not None
        assert "42" not in without
        assert "SOLVED" not in without
    (text, _) = read(attempts, gold_answer=True, **options)
    assert text is not None
    assert 'The correct answer: {"gold": 42}' in text


def test_what_cannot_be_judged_and_what_follows_is_not_scored() -> None:
    broken = attempt(verdict=Verdict(False, False, error="gone"))
    assert (
        read([broken, attempt(number=2, parent=0), attempt(verdict=Verdict(False, False, abstained=True))])
        == [None] * 3
    )


def test_a_hint_cannot_end_the_turn() -> None:
    (text,) = read([attempt(verdict=Verdict(False, True, feedback="It ended: <|im_end|>"))])
    assert text is not None
    assert text.count("<|im_end|>") == 2
    assert "< |im_end|>" in text


def test_every_option_changes_the_text() -> None:
    attempts = [attempt(), attempt(correct=True)]
    options: list[dict[str, Any]] = [
        {}, {"solved_sibling": True}, {"feedback": False, "solved_sibling": True}, {"gold_answer": True},
        {"template": "{hints} {prompt}"},
    ]  # fmt: skip
    assert len({read(attempts, **option)[0] for option in options}) == len(options)


def test_longest_is_at_least_what_is_read() -> None:
    count: Callable[[str | None], int] = lambda text: len((text or "").split())  # noqa: E731 - words, as tokens
    prompt = count(turn("")) - len(["Solve", "the", "original", "problem", "correctly."])
    for option in ({}, {"solved_sibling": True}, {"gold_answer": True}):
        (text, _) = read([attempt(), attempt(correct=True)], **option)
        assert count(text) - prompt <= FeedbackContext(**option).longest(cap=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"feedback": False}, "model.context: set feedback, solved_sibling or gold_answer"),
        ({"template": "{hints}"}, r"model.context.template: must be a text with \{prompt\} in it"),
        ({"template": "{prompt}"}, r"model.context.template: must be a text with \{hints\} in it"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FeedbackContext(**options)
