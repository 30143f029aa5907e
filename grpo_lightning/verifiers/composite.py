"""Verifiers that combine the rewards of others: a weighted sum, and one verifier per row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers._composite import Composite, conjunction, joined_errors, joined_feedback, part_rewards
from grpo_lightning.verifiers.base import ABSTAINED, Verifier, rewarded
from grpo_lightning.verifiers.function import named_verifiers


class WeightedVerifier(Composite):
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
        super().__init__("WeightedVerifier.parts", parts)
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

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        columns = {name: rewarded(part, samples) for name, part in self.parts.items()}
        return [self._sum({name: column[row] for name, column in columns.items()}) for row in range(len(samples))]

    def _sum(self, judged: Mapping[str, tuple[Verdict, float]]) -> Verdict:
        verdicts = {name: verdict for name, (verdict, _) in judged.items()}
        parts: dict[str, float] = {}
        for name, (verdict, reward) in judged.items():
            parts |= part_rewards(name, verdict, reward)
        if any(verdict.error is not None for verdict in verdicts.values()):
            return replace(joined_errors(verdicts.items()), parts=parts)
        required = [verdicts[name] for name in self.required if not verdicts[name].abstained]
        if not required:
            return replace(ABSTAINED, parts=parts)
        return replace(
            conjunction(required),
            feedback=joined_feedback(verdict for name, verdict in verdicts.items() if self.weights[name] > 0),
            score=sum(self.weights[name] * reward for name, (verdict, reward) in judged.items() if verdict.judged),
            parts=parts,
            reward_alone=any(verdict.reward_alone for verdict in required),
        )


class ByColumn(Composite):
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
        super().__init__("ByColumn.verifiers", self.verifiers)
        self.column = column

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        verdicts = [Verdict(False, False, error=self._unknown(sample.metadata)) for sample in samples]
        for name, verifier in self.verifiers.items():
            rows = [row for row, sample in enumerate(samples) if self._value(sample.metadata) == name]
            if rows:
                judged = rewarded(verifier, [samples[row] for row in rows])
                for row, (verdict, reward) in zip(rows, judged, strict=True):
                    parts = part_rewards(name, verdict, reward)
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
