"""The contract of every verifier, and the one place where a verifier's failure is classified."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import FinishReason, Prompt, Sample, Verdict

ABSTAINED = Verdict(correct=False, format_valid=False, abstained=True)
"""No say on this sample."""

TRUNCATED = "The completion was cut off before it ended. Give a shorter one that ends by itself."


class NoVerdict(ConfigError):
    """A verifier returned something else than one verdict a sample.

    That is a fault in its code that would repeat on every sample, so it stops the run, and is no ``error`` verdict.
    """


class Verifier(ABC):
    """Judges completions. Subclasses write :meth:`verify`; everything else has a default.

    A verifier raises plainly when it breaks: :func:`judge` turns that into ``Verdict(error=...)``, once, for all of
    them. It never turns its own failure into a reward of 0, and its feedback never contains the gold answer.

    Args:
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion that has only the format right.
        reward_wrong: reward of everything else.
        accept_truncated: whether a completion that was cut off at the token limit can be correct, or well-formed. By
            default neither: a policy that is paid for an answer and whatever follows it learns never to stop, and a
            program that reads the whole completion cannot use it.
    """

    slow: bool = False
    """Takes long enough to be worth a thread while other completions still decode. ``verify_batch`` is then called with
    whatever has finished, so only a verifier that judges each sample by itself may say so."""

    unsafe: bool = False
    """Runs what completions say without isolation: shown as ``reward/unsafe_sandbox`` in the metrics."""

    # Here too, for a subclass whose constructor does not call this one's.
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
        """Get ready before a run, or raise a ``RunError`` with the reason why that cannot be. By default nothing."""

    def require(self, prompt: Prompt) -> None:  # noqa: B027 - not every verifier needs something of a row
        """Raise a ``ValueError`` if a row lacks what completions are judged by: its answer, or a column of metadata.

        A run whose rows all lack it is refused before the model is loaded. By default a row may lack everything.
        """

    @abstractmethod
    def verify(self, sample: Sample) -> Verdict:
        """Judge one sample."""

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge many samples, in order. Override it where a batch is cheaper than a loop."""
        return [_verify_one(self, sample) for sample in samples]

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the ``parts`` that verdicts of this verifier report: those of a composite."""
        return ()

    def reward(self, verdict: Verdict) -> float:
        """The reward of a verdict: its own score if it has one, NaN if the verifier broke or abstained."""
        if not verdict.judged:
            return float("nan")
        if verdict.score is not None:
            return float(verdict.score)
        if verdict.correct:
            return self.reward_correct
        return self.reward_format if verdict.format_valid else self.reward_wrong


def judge(verifier: Verifier, samples: Sequence[Sample]) -> list[Verdict]:
    """Run a verifier on samples behind the one error boundary.

    Returns:
        One verdict a sample; a verifier that raised gives ``error`` verdicts.

    Raises:
        NoVerdict: the verifier, or a part of it, returned something else than one ``Verdict`` a sample, or a score that
            is no number.
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
            f"model.verifiers: {name}.verify_batch must return a list of verdicts, one a sample, not "
            f"{type(verdicts).__name__}"
        )
    if len(verdicts) != len(samples):
        raise NoVerdict(
            f"model.verifiers: {name}.verify_batch must return one verdict a sample, and returned {len(verdicts)} for "
            f"{len(samples)}"
        )
    for verdict in verdicts:
        if not isinstance(verdict, Verdict):
            raise NoVerdict(
                f"model.verifiers: {name} must return a Verdict, not {type(verdict).__name__}: write "
                "Verdict(correct=..., format_valid=...), with score=... for a reward of its own"
            )
        if verdict.score is not None and not _is_number(verdict.score):
            raise NoVerdict(
                f"model.verifiers: {name} must return a Verdict whose score is a number or None, not {verdict.score!r}"
            )
    if verifier.accept_truncated:
        return verdicts
    return [
        _of_truncated(verdict) if sample.finish_reason is FinishReason.LENGTH else verdict
        for sample, verdict in zip(samples, verdicts, strict=True)
    ]


def _of_truncated(verdict: Verdict) -> Verdict:
    """The verdict on a completion that was cut off. A score stays: whoever gives one decides the reward alone."""
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
    """The verdicts of :func:`judge`, each with its reward. A reward that is not a finite number is an error."""
    judged = []
    for verdict in judge(verifier, samples):
        reward = verifier.reward(verdict)
        if verdict.judged and not math.isfinite(reward):
            verdict, reward = replace(verdict, error=f"a reward of {reward}"), math.nan
        judged.append((verdict, reward))
    return judged


def by_class_name(verifiers: Sequence[Verifier]) -> dict[str, Verifier]:
    """Verifiers by the name of their class, numbered where it repeats, so that no two share a curve."""
    names: dict[str, Verifier] = {}
    for verifier in verifiers:
        name = type(verifier).__name__
        same = sum(type(other).__name__ == name for other in names.values())
        names[f"{name}{same + 1}" if same else name] = verifier
    return names


def _verify_one(verifier: Verifier, sample: Sample) -> Verdict:
    try:
        return verifier.verify(sample)
    except NoVerdict:
        raise
    except Exception as error:
        return broken(error)


def _is_number(score: object) -> bool:
    """Whether it is a number, NumPy's and torch's included, which are not imported here."""
    if not hasattr(score, "__float__"):
        return False
    try:
        float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False  # an array of several
    return True


def broken(error: BaseException) -> Verdict:
    """The verdict of a verifier that raised."""
    return Verdict(correct=False, format_valid=False, error=f"{type(error).__name__}: {error}")
