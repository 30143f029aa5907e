"""Verifiers that combine the verdicts of others: all of, and any of."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers._composite import Composite, conjunction, joined_errors, joined_feedback, part_rewards
from grpo_lightning.verifiers.base import ABSTAINED, Verifier, by_class_name, judge
from grpo_lightning.verifiers.function import as_verifiers, named_verifiers


class _Logical(Composite):
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
            key,
            self.verifiers,
            reward_correct=reward_correct,
            reward_format=reward_format,
            reward_wrong=reward_wrong,
        )

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
            parts |= part_rewards(name, verdict, reward if math.isfinite(reward) else math.nan)
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
            return joined_errors(verdicts.items())
        judged = [verdict for verdict in verdicts.values() if verdict.judged]
        if not judged:
            return ABSTAINED
        return replace(
            conjunction(judged),
            feedback=joined_feedback(verdict for verdict in judged if not verdict.correct),
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
            return joined_errors(verdicts.items())
        if not judged:
            return ABSTAINED
        return Verdict(
            correct=False,
            format_valid=any(verdict.format_valid for verdict in judged),
            correct_but_truncated=any(verdict.correct_if_ended for verdict in judged),
            feedback=joined_feedback(judged),
        )
