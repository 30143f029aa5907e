"""Verifiers that combine other verifiers: a weighted sum, all of, any of, and one per row.

A composite passes on whole batches: every part is called once per batch. Combining verdicts follows two rules. An error
never becomes a reward, and a partial reward is never reported as the whole. A part that abstains counts neither for nor
against; if every part abstains, so does the composite.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo_lightning.curves import taken_names
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.base import ABSTAINED, Verifier, by_class_name, judge, rewarded
from grpo_lightning.verifiers.function import as_verifiers, named_verifiers


class _Composite(Verifier):
    """The base of verifiers that judge whole batches from the verdicts of others. It is slow if one of them is.

    Args:
        verifiers: the verifiers to combine.
        rewards: the reward options of :class:`Verifier`.
    """

    def __init__(self, verifiers: Iterable[Verifier], **rewards: float) -> None:
        # Each part has already handled truncation.
        super().__init__(**rewards, accept_truncated=True)
        self._all = list(verifiers)
        self.slow = any(verifier.slow for verifier in self._all)
        self.unsafe = any(verifier.unsafe for verifier in self._all)

    def start(self) -> None:
        """Start each part."""
        for verifier in self._all:
            verifier.start()

    def require(self, prompt: Prompt) -> None:
        """Check the row with each part."""
        for verifier in self._all:
            verifier.require(prompt)

    def columns(self, available: Sequence[str], has_answer: bool) -> Sequence[str]:
        """Return the columns that its parts read."""
        return [name for verifier in self._all for name in verifier.columns(available, has_answer)]

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_batch([sample])[0]

    @abstractmethod
    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]: ...


class WeightedVerifier(_Composite):
    """The weighted sum of the rewards of named parts.

    ``reward = sum of weight * reward`` over the parts; the weights are not normalised. A part that abstains adds
    nothing. If a part fails, the sample has no reward, whatever the part's weight.

    A completion is correct (and has a valid format) if every required part says so. If all required parts abstain, the
    sum abstains too: the other parts, such as a length penalty, do not judge the answer.

    The reward of each part is logged as ``reward/<name>``, even with weight 0.

    Args:
        parts: the verifiers by name.
        weights: the weights by name of the part; ``None`` for 1 each. A part with weight 0 is only logged.
        required: names of the parts that decide whether a completion is correct; ``None`` for all with a positive
            weight.

    Raises:
        ConfigError: there is no part; a name is unknown, missing or taken; or a weight is not finite.
    """

    def __init__(
        self,
        parts: dict[str, Verifier],
        weights: dict[str, float] | None = None,
        required: list[str] | None = None,
    ) -> None:
        parts = named_verifiers(parts, "WeightedVerifier.parts")
        super().__init__(parts.values())
        self._part_names = _checked_names("WeightedVerifier.parts", parts)
        self.parts = parts
        self.weights = dict.fromkeys(parts, 1.0) if weights is None else dict(weights)
        for name in self.weights:
            if name not in parts:
                raise ConfigError(f"WeightedVerifier.weights: there is no part {name!r} in {', '.join(parts)}")
            if not math.isfinite(self.weights[name]):
                raise ConfigError(f"WeightedVerifier.weights: {name!r} needs a number, not {self.weights[name]}")
        for name in parts:
            if name not in self.weights:
                raise ConfigError(f"WeightedVerifier.weights: the part {name!r} has no weight; give 0 to only log it")
        self.required = [n for n in parts if self.weights[n] > 0] if required is None else list(required)
        for name in self.required:
            if name not in parts:
                raise ConfigError(f"WeightedVerifier.required: there is no part {name!r} in {', '.join(parts)}")
        if not self.required:
            raise ConfigError("WeightedVerifier.required: name at least one part, or give one a weight above 0")

    @property
    def part_names(self) -> tuple[str, ...]:
        return self._part_names

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        columns = {name: rewarded(part, samples) for name, part in self.parts.items()}
        return [self._sum({name: column[row] for name, column in columns.items()}) for row in range(len(samples))]

    def _sum(self, judged: Mapping[str, tuple[Verdict, float]]) -> Verdict:
        verdicts = {name: verdict for name, (verdict, _) in judged.items()}
        parts: dict[str, float] = {}
        for name, (verdict, reward) in judged.items():
            parts |= _named(name, verdict, reward)
        if any(verdict.error is not None for verdict in verdicts.values()):
            return replace(_error(verdicts.items()), parts=parts)
        required = [verdicts[name] for name in self.required if not verdicts[name].abstained]
        if not required:
            return replace(ABSTAINED, parts=parts)
        return replace(
            _all_of(required),
            feedback=_feedback(verdict for name, verdict in verdicts.items() if self.weights[name] > 0),
            score=sum(self.weights[name] * reward for name, (verdict, reward) in judged.items() if verdict.judged),
            parts=parts,
        )


class _Logical(_Composite):
    """The base of verifiers that combine verdicts; the rewards of their parts are only logged.

    Args:
        verifiers: at least one verifier, by name, or in a list, where each is named after its class.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion of which only the format is valid.
        reward_wrong: reward of any other completion.

    Raises:
        ConfigError: there is no verifier, or a name is taken.
    """

    def __init__(
        self,
        verifiers: list[Verifier] | dict[str, Verifier],
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
    ) -> None:
        key = f"{type(self).__name__}.verifiers"
        if isinstance(verifiers, dict):
            self.verifiers = named_verifiers(verifiers, key)
        else:
            self.verifiers = by_class_name(as_verifiers(verifiers, key))
        super().__init__(
            self.verifiers.values(),
            reward_correct=reward_correct,
            reward_format=reward_format,
            reward_wrong=reward_wrong,
        )
        self._part_names = _checked_names(key, self.verifiers)

    @property
    def part_names(self) -> tuple[str, ...]:
        return self._part_names

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        columns = {name: judge(verifier, samples) for name, verifier in self.verifiers.items()}
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(samples))]
        return [replace(self._combine(row), parts=self._rewards(row)) for row in rows]

    @abstractmethod
    def _combine(self, verdicts: Mapping[str, Verdict]) -> Verdict: ...

    def _rewards(self, verdicts: Mapping[str, Verdict]) -> dict[str, float]:
        parts: dict[str, float] = {}
        for name, verdict in verdicts.items():
            reward = self.verifiers[name].reward(verdict)
            parts |= _named(name, verdict, reward if math.isfinite(reward) else math.nan)
        return parts


class AllOf(_Logical):
    """Correct if all verifiers say so; format-valid if all say so.

    If one fails, the sample has no reward, even if another rejects it. The feedback is that of the verifiers that
    reject it. The verifiers' own rewards and scores do not count; they are logged as ``reward/<name>``.

    Args:
        verifiers: at least one verifier, by name, or in a list, where each is named after its class.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion of which only the format is valid.
        reward_wrong: reward of any other completion.

    Raises:
        ConfigError: there is no verifier, or a name is taken.
    """

    def _combine(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        if any(verdict.error is not None for verdict in verdicts.values()):
            return _error(verdicts.items())
        judged = [verdict for verdict in verdicts.values() if verdict.judged]
        if not judged:
            return ABSTAINED
        return replace(
            _all_of(judged),
            feedback=_feedback(verdict for verdict in judged if not verdict.correct),
        )


class AnyOf(_Logical):
    """Correct if at least one verifier says so; format-valid if at least one says so.

    A verifier that fails does not undo the success reported by another one. Without a success, the sample then has no
    reward, since the verifier that failed might have accepted it. The feedback of a rejected sample is that of all
    verifiers. Their own rewards and scores do not count; they are logged as ``reward/<name>``.

    Args:
        verifiers: at least one verifier, by name, or in a list, where each is named after its class.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion of which only the format is valid.
        reward_wrong: reward of any other completion.

    Raises:
        ConfigError: there is no verifier, or a name is taken.
    """

    def require(self, prompt: Prompt) -> None:
        """Require nothing: if one verifier cannot judge the row, another one still may."""

    def _combine(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        judged = [verdict for verdict in verdicts.values() if verdict.judged]
        if any(verdict.correct for verdict in judged):
            return Verdict(correct=True, format_valid=True)
        if any(verdict.error is not None for verdict in verdicts.values()):
            return _error(verdicts.items())
        if not judged:
            return ABSTAINED
        return Verdict(
            correct=False,
            format_valid=any(verdict.format_valid for verdict in judged),
            correct_but_truncated=any(verdict.correct_if_ended for verdict in judged),
            feedback=_feedback(judged),
        )


class ByColumn(_Composite):
    """Judges each row with the verifier that a data set column names, for several tasks in one run.

    Each verifier gets its rows as one batch and keeps its own rewards, which are logged as ``reward/<value>``.

    Args:
        column: a metadata column of the task's rows.
        verifiers: the verifiers by value of the column, as text. A value without a verifier is an error, not a wrong
            answer.

    Raises:
        ConfigError: there is no verifier, or a value is the name of another curve.
    """

    def __init__(self, column: str, verifiers: dict[str, Verifier]) -> None:
        self.verifiers = named_verifiers(verifiers, "ByColumn.verifiers")
        super().__init__(self.verifiers.values())
        self._part_names = _checked_names("ByColumn.verifiers", self.verifiers)
        self.column = column

    @property
    def part_names(self) -> tuple[str, ...]:
        return self._part_names

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = [Verdict(False, False, error=self._unknown(sample.metadata)) for sample in samples]
        for name, verifier in self.verifiers.items():
            rows = [row for row, sample in enumerate(samples) if self._value(sample.metadata) == name]
            if rows:
                judged = rewarded(verifier, [samples[row] for row in rows])
                for row, (verdict, reward) in zip(rows, judged, strict=True):
                    parts = _named(name, verdict, reward)
                    verdicts[row] = replace(verdict, score=reward if verdict.judged else None, parts=parts)
        return verdicts

    def require(self, prompt: Prompt) -> None:
        """Check the row with the verifier that judges it."""
        value = self._value(prompt.metadata)
        if value not in self.verifiers:
            raise ValueError(self._unknown(prompt.metadata))
        self.verifiers[value].require(prompt)

    def _value(self, metadata: Mapping[str, Any]) -> str | None:
        return str(metadata[self.column]) if self.column in metadata else None

    def _unknown(self, metadata: Mapping[str, Any]) -> str:
        known = ", ".join(self.verifiers)
        value = self._value(metadata)
        if value is None:
            return f"the row has no column {self.column!r} that names one of {known}"
        return f"the column {self.column!r} is {value[:100]!r}, but there are verifiers only for {known}"


def _checked_names(key: str, parts: Mapping[str, Verifier]) -> tuple[str, ...]:
    """Return the names of the parts and of their own parts, each of which is a curve."""
    if not parts:
        raise ConfigError(f"{key}: give at least one verifier")
    names = [name for part in parts for name in (part, *(f"{part}/{inner}" for inner in parts[part].part_names))]
    other_curves = taken_names("reward/")
    for name in names:
        if not name or name in other_curves:
            raise ConfigError(f"{key}: {name!r} cannot be a name: reward/{name} is another curve")
        if names.count(name) > 1:
            raise ConfigError(f"{key}: two parts would share the curve reward/{name}; rename one of them")
    return tuple(names)


def _named(name: str, verdict: Verdict, reward: float) -> dict[str, float]:
    """Return a part's reward and those of its own parts, under the names of :func:`_checked_names`."""
    return {name: reward} | {f"{name}/{inner}": value for inner, value in verdict.parts.items()}


def _all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine verdicts that must all agree."""
    correct = all(verdict.correct for verdict in verdicts)
    return Verdict(
        correct,
        format_valid=all(verdict.format_valid for verdict in verdicts),
        correct_but_truncated=not correct and all(verdict.correct_if_ended for verdict in verdicts),
    )


def _error(verdicts: Iterable[tuple[str, Verdict]]) -> Verdict:
    errors = [f"{name}: {verdict.error}" for name, verdict in verdicts if verdict.error is not None]
    return Verdict(correct=False, format_valid=False, error="; ".join(errors))


def _feedback(verdicts: Iterable[Verdict]) -> str:
    return " ".join(dict.fromkeys(verdict.feedback for verdict in verdicts if verdict.feedback))
