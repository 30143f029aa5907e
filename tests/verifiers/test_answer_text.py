"""Thought and answer: what verifiers read of a completion."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import FinishReason, Prompt, Sample
from grpo_lightning.verifiers import (
    CodeVerifier,
    FormatVerifier,
    FunctionVerifier,
    JSONSchemaVerifier,
    MathVerifier,
    Verdict,
    Verifier,
)
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import judge, rewarded


def read(completion: str, prompt: Any = "", prompt_end: str = "", **options: Any) -> str | None:
    """The answer, ``None`` if there is a problem."""
    found = AnswerReader(**options).read(Sample(prompt, completion, prompt_end=prompt_end))
    assert not (found.text and found.problem)
    return None if found.problem else found.text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a", "a"),
        ("", ""),
        ("<think>a</think>b", "\nb"),
        ("a<think>b</think>c", "a\nc"),
        ("a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("<think>a<think>b</think>c", "\nc"),
        ("a<think>b", None),
        ("think> a", "think> a"),
    ],
)
def test_thoughts_are_not_read(text: str, answer: str | None) -> None:
    assert read(text) == answer


@pytest.mark.parametrize(
    ("prompt", "prompt_end", "opened"),
    [
        ("2 + 3?<think>\n", "", True),
        ("2 + 3?<think>", "", True),
        ("2 + 3?\n<think>\nOkay, so", "", True),
        ("<|user|>2 + 3?<|assistant|><think>Okay,", "", True),
        ("<think>Easy.</think>\n<think>\nOkay, so", "", True),
        ("2 + 3?\n<think>\nOkay.\n</think>\n", "", False),
        ("Think in <think> tags. 2 + 3?", "", False),
        ("Write\n<think> ... </think>\n<answer> ... </answer>\n2 + 3?", "", False),
        ([{"role": "user", "content": "2 + 3? <think>"}], "", False),
        ([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "<think>Well,"}], "", True),
        ([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "<think>5</think>"}], "", False),
        ([{"role": "user", "content": "2 + 3?"}], "<|im_start|>assistant\n<think>\n", True),
        ([{"role": "user", "content": "2 + 3?"}], "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_a_thought_that_the_prompt_opened(prompt: Any, prompt_end: str, opened: bool) -> None:
    assert read(r"First guess: \boxed{5}. Let me check", prompt, prompt_end) == (
        None if opened else r"First guess: \boxed{5}. Let me check"
    )
    assert read(r"Is it 4?</think>\boxed{5}", prompt, prompt_end) == r"\boxed{5}"


@pytest.mark.parametrize(
    ("tag", "completion", "answer"),
    [
        ("reason", "<reason>a</reason>b", "\nb"),
        ("<reason>", "<reason>a</reason>b", "\nb"),
        ("[THINK]", "[THINK]a[/THINK]b", "\nb"),
        ("[THINK]", "[THINK]a", None),
        ("reason", "<think>a</think>b", "<think>a</think>b"),
    ],
)
def test_other_thought_tags(tag: str, completion: str, answer: str | None) -> None:
    assert read(completion, thought_tags=[tag]) == answer


def test_several_kinds_of_thoughts() -> None:
    assert read("<a>1<b>2</a>3<b>4</b>5", thought_tags=["a", "b"]) == "\n3\n5"
    assert read("<think>1</think>2", thought_tags=[]) == "<think>1</think>2"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so <answer>5</answer>.", "5"),
        ("<answer>5</answer><answer> 5 </answer>", " 5 "),
        ("<answer>5</answer><answer>6</answer>", None),
        ("<answer>5</answer><answer>6", None),
        ("<answer>5", None),
        ("5", None),
        ("<think><answer>6</answer></think><answer>5</answer>", "5"),
    ],
)
def test_the_answer_tag(completion: str, answer: str | None) -> None:
    assert read(completion, answer_tag="answer") == answer


@pytest.mark.parametrize(
    "options",
    [
        {"thought_tags": "think"},
        {"thought_tags": ["th ink"]},
        {"thought_tags": ["</think>"]},
        {"thought_tags": ["think", "<think>"]},
        {"answer_tag": "think"},
        {"answer_tag": ""},
    ],
)
def test_a_tag_that_is_none(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"thought_tags|answer_tag"):
        AnswerReader(**options)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", "\n"]), max_size=30))
def test_nothing_of_an_open_thought_is_ever_read(pieces: list[str]) -> None:
    text = "".join(pieces)
    answer = read(text, prompt="<think>")
    assert "</think>" in text or answer is None
    assert answer is None or "think>" not in answer


# -- all verifiers alike -----------------------------------------------------------------------------------------------

ROWS: list[tuple[type[Verifier], str, Any, dict[str, Any]]] = [
    (MathVerifier, r"\boxed{5}", "5", {}),
    (JSONSchemaVerifier, '{"a": 1}', {"a": 1}, {"schema": {"type": "object"}}),
    (CodeVerifier, "```python\ndef f(x): return x\n```", None, {"tests": "assert f(1) == 1"}),
]


@pytest.mark.parametrize(("kind", "right", "gold", "metadata"), ROWS)
def test_every_verifier_reads_the_same_part(
    kind: type[Verifier], right: str, gold: Any, metadata: dict[str, Any]
) -> None:
    def reward(completion: str, prompt: str = "", **options: Any) -> float:
        return rewarded(kind(**options), [Sample(prompt, completion, gold, metadata)])[0][1]

    assert reward(right) == 1
    assert reward(right, prompt="<think>\n") == 0
    assert reward(f"Well.</think>{right}", prompt="<think>\n") == 1
    assert reward(f"<think>{right}") == 0
    assert reward(f"<reason>{right}</reason>", thought_tags=["reason"]) == 0
    assert reward(f"<answer>{right}</answer>", answer_tag="answer") == 1
    assert reward(right, answer_tag="answer") == 0
    assert reward(f"<answer>{right}", answer_tag="answer") == 0


@pytest.mark.parametrize(("kind", "right", "gold", "metadata"), ROWS)
def test_a_truncated_completion_is_neither_correct_nor_well_formed(
    kind: type[Verifier], right: str, gold: Any, metadata: dict[str, Any]
) -> None:
    sample = Sample("", right, gold, metadata, FinishReason.LENGTH)
    ((verdict, reward),) = rewarded(kind(), [sample])
    assert (verdict.correct, verdict.format_valid, reward) == (False, False, 0)
    assert verdict.correct_but_truncated
    assert "cut off" in verdict.feedback
    ((verdict, reward),) = rewarded(kind(accept_truncated=True), [sample])
    assert (verdict.correct, verdict.correct_but_truncated, reward) == (True, False, 1)


def test_a_truncated_completion_does_not_have_the_form() -> None:
    sample = Sample("", "<answer>5</answer>", finish_reason=FinishReason.LENGTH)
    assert rewarded(FormatVerifier(["answer"]), [sample])[0][1] == 0
    assert rewarded(FormatVerifier(["answer"], accept_truncated=True), [sample])[0][1] == 1


def test_a_function_decides_the_reward_of_a_truncated_completion_by_a_number() -> None:
    sample = Sample("", "x", finish_reason=FinishReason.LENGTH)
    for value, reward, accepted in ((True, 0.0, 1.0), (0.7, 0.7, 0.7), (1, 1.0, 1.0)):
        for option, wanted in ((False, reward), (True, accepted)):
            verifier = FunctionVerifier(lambda sample, value=value: value, accept_truncated=option)
            assert rewarded(verifier, [sample])[0][1] == wanted


class Scored(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return Verdict(True, True, "own", score=0.7)


def test_who_gives_a_score_decides_the_reward_of_a_truncated_completion() -> None:
    ((verdict, reward),) = rewarded(Scored(), [Sample("", "x", finish_reason=FinishReason.LENGTH)])
    assert (verdict.correct, verdict.feedback, reward) == (False, "own", 0.7)


def test_an_error_of_a_truncated_completion_stays_an_error() -> None:
    (verdict,) = judge(MathVerifier(), [Sample("", "#### 5", finish_reason=FinishReason.LENGTH)])
    assert verdict.error is not None


def test_samples_and_prompts_can_be_pickled() -> None:
    for thing in (Sample("q", "#### 5", answer="5"), Prompt([{"role": "user", "content": "q"}])):
        assert pickle.loads(pickle.dumps(thing)) == thing
