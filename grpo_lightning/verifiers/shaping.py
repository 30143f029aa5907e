"""Penalties on the length and the repetitions of a completion, for use in a weighted sum."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice
from typing import Literal, get_args

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers.base import ABSTAINED, Verifier

Unit = Literal["tokens", "words", "characters"]


class LengthPenalty(Verifier):
    """The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), a reward between -1 and 0.

    With ``L`` the length of a completion::

        0                                   L <= max_length - buffer
        (max_length - buffer - L) / buffer  L <= max_length
        -1                                  otherwise

    It does not judge the answer: it accepts every completion, so it does not affect the verdict of other parts of a
    ``WeightedVerifier`` or ``AllOf``. Do not use it in ``AnyOf``.

    Args:
        max_length: ``L_max``, the length above which the penalty is full; in tokens, ``max_new_tokens`` of the
            sampling.
        buffer: ``L_cache``, the length over which the penalty grows. With 0 it is a step.
        unit: the unit of lengths. If only the text of a completion is known, a penalty in tokens abstains.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, max_length: int, buffer: int, unit: Unit = "tokens") -> None:
        super().__init__(accept_truncated=True)
        if max_length < 1:
            raise ConfigError(f"LengthPenalty.max_length: must be at least 1, not {max_length}")
        if not 0 <= buffer <= max_length:
            raise ConfigError(f"LengthPenalty.buffer: must be from 0 to max_length={max_length}, not {buffer}")
        self.max_length = max_length
        self.buffer = buffer
        self.unit = _checked(unit)

    def verify(self, sample: Sample) -> Verdict:
        units = _units(sample, self.unit)
        if units is None:
            return ABSTAINED
        penalty = self._penalty(len(units))
        return Verdict(True, True, "The completion is too long. Write a shorter one." if penalty else "", score=penalty)

    def _penalty(self, length: int) -> float:
        free = self.max_length - self.buffer
        if length <= free:
            return 0.0
        if length <= self.max_length:
            return (free - length) / self.buffer
        return -1.0


class RepetitionPenalty(Verifier):
    """The fraction of repeated n-grams, as a reward between -1 and 0 (after arXiv 2502.03373, appendix C.2).

    ``distinct n-grams / n-grams - 1``: 0 if no n-gram repeats, and for completions of fewer than n units. The paper's
    implementation scales it by the largest penalty; here the weight in the ``WeightedVerifier`` does. Any long text
    repeats some n-grams, so choose n large enough for normal text to stay near 0.

    Like :class:`LengthPenalty`, it does not judge the answer and accepts every completion.

    Args:
        ngram_size: n.
        unit: the unit of which n-grams consist. Words are compared case-insensitively. If only the text of a completion
            is known, a penalty in tokens abstains.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(self, ngram_size: int = 3, unit: Unit = "tokens") -> None:
        super().__init__(accept_truncated=True)
        if ngram_size < 1:
            raise ConfigError(f"RepetitionPenalty.ngram_size: must be at least 1, not {ngram_size}")
        self.ngram_size = ngram_size
        self.unit = _checked(unit)

    def verify(self, sample: Sample) -> Verdict:
        units = _units(sample, self.unit)
        if units is None:
            return ABSTAINED
        count = len(units) - self.ngram_size + 1
        if count < 1:
            return Verdict(True, True, score=0.0)
        ngrams = zip(*(islice(units, start, None) for start in range(self.ngram_size)), strict=False)
        penalty = len(set(ngrams)) / count - 1
        return Verdict(True, True, "Most of the completion repeats itself." if penalty < -0.5 else "", score=penalty)


def _checked(unit: Unit) -> Unit:
    if unit not in get_args(Unit):
        raise ConfigError(f"unit: must be one of {', '.join(get_args(Unit))}, not {unit!r}")
    return unit


def _units(sample: Sample, unit: Unit) -> Sequence[Hashable] | None:
    if unit == "tokens":
        return sample.token_ids
    return sample.completion.lower().split() if unit == "words" else sample.completion
