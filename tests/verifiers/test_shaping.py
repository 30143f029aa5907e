"""LengthPenalty and RepetitionPenalty, against their formulas."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample
from grpo_lightning.verifiers import LengthPenalty, RepetitionPenalty, Verifier, WeightedVerifier


def penalty(verifier: Verifier, text: str = "", token_ids: list[int] | None = None) -> float:
    verdict = verifier.verify(Sample("", text, token_ids=token_ids))
    assert verdict.judged
    assert verdict.correct
    assert verdict.format_valid
    assert bool(verdict.feedback) <= (verifier.reward(verdict) < 0)
    return verifier.reward(verdict)


@pytest.mark.parametrize(
    ("length", "expected"),
    # By hand, from eq. 13 of arXiv 2503.14476 with L_max = 100 and L_cache = 20.
    [(0, 0), (80, 0), (81, -0.05), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (10_000, -1)],
)
def test_the_soft_overlong_punishment(length: int, expected: float) -> None:
    assert penalty(LengthPenalty(100, 20), token_ids=[5] * length) == pytest.approx(expected)
    assert penalty(LengthPenalty(100, 20, "characters"), "x" * length) == pytest.approx(expected)
    assert penalty(LengthPenalty(100, 20, "words"), "many  words\n" * (length // 2) + "word" * (length % 2)) == (
        pytest.approx(expected)
    )


def test_without_a_buffer_it_comes_all_at_once() -> None:
    assert [penalty(LengthPenalty(3, 0), token_ids=[1] * length) for length in (2, 3, 4)] == [0, 0, -1]


@given(maximum=st.integers(1, 50), share=st.floats(0, 1), length=st.integers(0, 100))
def test_longer_is_never_better(maximum: int, share: float, length: int) -> None:
    verifier = LengthPenalty(maximum, int(share * maximum))
    one, other = (penalty(verifier, token_ids=[1] * n) for n in (length, length + 1))
    assert -1 <= other <= one <= 0


@pytest.mark.parametrize(
    ("ids", "n", "expected"),
    # By hand: distinct n-grams / n-grams - 1.
    [
        ([1, 2, 3, 4], 2, 0), ([5, 5, 5, 5, 5], 2, 1 / 4 - 1), ([1, 2, 1, 2, 1], 2, 2 / 4 - 1),
        ([1, 2, 3, 1, 2, 3], 3, 3 / 4 - 1), ([7, 7], 3, 0), ([], 1, 0), ([7, 7], 1, -0.5),
    ],
)  # fmt: skip
def test_the_repetition_penalty(ids: list[int], n: int, expected: float) -> None:
    assert penalty(RepetitionPenalty(n), token_ids=ids) == pytest.approx(expected)


def test_words_and_characters() -> None:
    assert penalty(RepetitionPenalty(2, "words"), "Go on go ON  go\non") == pytest.approx(2 / 5 - 1)
    assert penalty(RepetitionPenalty(2, "words"), "abababab") == 0
    assert penalty(RepetitionPenalty(2, "characters"), "ababa") == pytest.approx(2 / 4 - 1)


@given(text=st.text(), n=st.integers(1, 5), unit=st.sampled_from(["words", "characters"]))
def test_any_text_has_a_penalty_from_minus_one_to_zero(text: str, n: int, unit: Any) -> None:
    assert -1 < penalty(RepetitionPenalty(n, unit), text) <= 0
    assert -1 <= penalty(LengthPenalty(10, n, unit), text) <= 0


def test_a_penalty_in_tokens_abstains_where_only_the_text_is_known() -> None:
    for verifier in (LengthPenalty(10, 5), RepetitionPenalty()):
        assert verifier.verify(Sample("", "again " * 100)).abstained
    total = WeightedVerifier(
        {"length": LengthPenalty(4, 2), "words": LengthPenalty(4, 2, "words")}, {"length": 1, "words": 2}
    )
    assert total.verify(Sample("", "one two three")).score == -1
    assert total.verify(Sample("", "one two three", token_ids=[1, 2, 3, 4])).score == -2


def test_feedback_asks_for_what_helps() -> None:
    assert LengthPenalty(4, 2, "words").verify(Sample("", "a b c")).feedback == (
        "The completion is too long. Write a shorter one."
    )
    assert (
        RepetitionPenalty(1, "words").verify(Sample("", "a a a")).feedback == "Most of the completion repeats itself."
    )
    assert RepetitionPenalty(1, "words").verify(Sample("", "a b a b c d")).feedback == ""


def test_a_megabyte_takes_no_time() -> None:
    ids = [row % 997 for row in range(1_000_000)]
    started = time.perf_counter()
    penalty(RepetitionPenalty(20), token_ids=ids[:200_000])
    penalty(LengthPenalty(100, 10), token_ids=ids)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: LengthPenalty(0, 0), "LengthPenalty.max_length: must be at least 1, not 0"),
        (lambda: LengthPenalty(4, 5), "LengthPenalty.buffer: must be from 0 to max_length=4, not 5"),
        (lambda: LengthPenalty(4, -1), "LengthPenalty.buffer: must be from 0 to max_length=4, not -1"),
        (lambda: LengthPenalty(4, 1, "bytes"), "unit: must be one of tokens, words, characters, not 'bytes'"),
        (lambda: RepetitionPenalty(0), "RepetitionPenalty.ngram_size: must be at least 1, not 0"),
    ],
)
def test_options_out_of_range(build: Any, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value) == text
