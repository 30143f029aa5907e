"""The base class of verifiers, and the error boundary that classifies a verifier's failure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import FinishReason, Prompt, Sample, Verdict

ABSTAINED = Verdict(correct=False, format_valid=False, abstained=True)
"""The verdict of a verifier that does not judge a sample."""

MAX_REWARD = 1e6
"""Advantages are computed in float32, which tells rewards up to here apart to 0.06, but not 1e8 from 1e8 + 1."""

TRUNCATED = "The completion was cut off before it ended. Give a shorter one that ends by itself."


class NoVerdict(ConfigError):
    """A verifier did not return one verdict per sample.

    This is a bug in the verifier that would repeat on every sample, so it stops the run instead of becoming an
    ``error`` verdict.
    """


class Verifier(ABC):
    """The base class of verifiers, which judge completions. Only :meth:`verify` is required.

    If a verifier fails, it raises; :func:`judge` turns the exception into ``Verdict(error=...)``. A verifier never
    turns its own failure into a reward of 0, and its feedback never contains the gold answer.

    Args:
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion of which only the format is valid.
        reward_wrong: reward of any other completion.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or format-valid. By
            default it can be neither: a policy that is rewarded for an answer followed by anything learns never to
            stop, and a program that reads the whole completion cannot use it.
    """

    slow: bool = False
    """Whether to call the verifier in a thread while other completions still decode. ``verify_batch`` is then called
    with whatever has finished, so set this only if each sample is judged independently."""

    unsafe: bool = False
    """Whether completions are executed without isolation; shown as ``reward/unsafe_sandbox`` in the metrics."""

    # Class attributes too, for a subclass whose constructor does not call this one.
    reward_correct: float = 1.0
    reward_format: float = 0.5
    reward_wrong: float = 0.0
    accept_truncated: bool = False

    def __init__(
        self,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
    ) -> None:
        self.reward_correct = reward_correct
        self.reward_format = reward_format
        self.reward_wrong = reward_wrong
        self.accept_truncated = accept_truncated

    def start(self) -> None:  # noqa: B027 - not every verifier has something to start
        """Prepare for a run, or raise a ``RunError`` that says why this is impossible. Does nothing by default."""

    def require(self, prompt: Prompt) -> None:  # noqa: B027 - not every verifier needs something of a row
        """Raise a ``ValueError`` if a row lacks what the verifier needs: an answer, or a metadata column.

        A run in which every row lacks it is refused before the model is loaded. By default nothing is required.
        """

    def columns(self, available: Sequence[str], has_answer: bool) -> Sequence[str]:
        """Return the columns that it reads from ``metadata`` and that the task need not put there. By default none.

        Args:
            available: the columns that the rows have.
            has_answer: whether they have gold answers.

        Raises:
            ConfigError: it needs one that does not exist.
        """
        return ()

    @abstractmethod
    def verify(self, sample: Sample) -> Verdict:
        """Judge one sample."""

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge many samples, in order. Override it if a batch is cheaper than a loop."""
        verdicts = []
        for sample in samples:
            try:
                verdicts.append(self.verify(sample))
            except NoVerdict:
                raise
            except Exception as error:
                verdicts.append(broken(error))
        return verdicts

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names in ``Verdict.parts``. Only the verdicts of a composite have any."""
        return ()

    def reward(self, verdict: Verdict) -> float:
        """Return the reward of a verdict: its score if it has one, NaN if the verifier failed or abstained."""
        if not verdict.judged:
            return float("nan")
        if verdict.score is not None:
            return float(verdict.score)
        if verdict.correct:
            return self.reward_correct
        return self.reward_format if verdict.format_valid else self.reward_wrong


def judge(verifier: Verifier, samples: Sequence[Sample]) -> list[Verdict]:
    """Run a verifier on samples; this is the one error boundary for verifiers.

    Returns:
        One verdict per sample; ``error`` verdicts if the verifier raised.

    Raises:
        NoVerdict: the verifier, or a part of it, did not return one ``Verdict`` per sample, or returned a score that is
            not a number.
    """
    try:
        verdicts = verifier.verify_batch(samples)
    except NoVerdict:
        raise
    except Exception as error:
        return [broken(error)] * len(samples)
    name = type(verifier).__name__
    if not isinstance(verdicts, list):
        raise NoVerdict(
            f"model.verifiers: {name}.verify_batch must return a list of verdicts, one per sample, not "
            f"{type(verdicts).__name__}"
        )
    if len(verdicts) != len(samples):
        raise NoVerdict(
            f"model.verifiers: {name}.verify_batch must return one verdict per sample, but returned {len(verdicts)} "
            f"for {len(samples)} samples"
        )
    for verdict in verdicts:
        if not isinstance(verdict, Verdict):
            raise NoVerdict(
                f"model.verifiers: {name} must return a Verdict, not {type(verdict).__name__}: write "
                "Verdict(correct=..., format_valid=...), with score=... to set the reward directly"
            )
        if verdict.score is not None and not _is_number(verdict.score):
            raise NoVerdict(
                f"model.verifiers: {name} must return a Verdict whose score is a number or None, not {verdict.score!r}"
            )
    if verifier.accept_truncated:
        return verdicts
    return [
        _reject_truncated(verdict) if sample.finish_reason is FinishReason.LENGTH else verdict
        for sample, verdict in zip(samples, verdicts, strict=True)
    ]


def _reject_truncated(verdict: Verdict) -> Verdict:
    """Reject a completion that was cut off. A score is kept: a verifier that gives one decides the reward alone."""
    if not verdict.judged:
        return verdict
    feedback = TRUNCATED if verdict.score is None else verdict.feedback
    return replace(
        verdict,
        correct=False,
        format_valid=False,
        feedback=feedback,
        correct_but_truncated=verdict.correct_if_ended,
    )


def rewarded(verifier: Verifier, samples: Sequence[Sample]) -> list[tuple[Verdict, float]]:
    """Return the verdicts of :func:`judge`, each with its reward. A reward that is not finite is an error."""
    judged = []
    for verdict in judge(verifier, samples):
        reward = verifier.reward(verdict)
        if verdict.judged and not math.isfinite(reward):
            verdict, reward = replace(verdict, error=f"a reward of {reward}"), math.nan
        judged.append((verdict, reward))
    return judged


def by_class_name(verifiers: Sequence[Verifier]) -> dict[str, Verifier]:
    """Name verifiers after their classes. A class that repeats gets numbers, so that every name is a separate curve."""
    by_name: dict[str, Verifier] = {}
    for verifier in verifiers:
        name = type(verifier).__name__
        same_class = sum(type(named).__name__ == name for named in by_name.values())
        by_name[f"{name}{same_class + 1}" if same_class else name] = verifier
    return by_name


def _is_number(score: object) -> bool:
    """Whether ``score`` is a number, including those of NumPy and torch, which are not imported here."""
    if not hasattr(score, "__float__"):
        return False
    try:
        float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False  # an array with more than one element
    return True


def broken(error: BaseException) -> Verdict:
    """Return the verdict of a verifier that raised ``error``."""
    return Verdict(correct=False, format_valid=False, error=f"{type(error).__name__}: {error}")
