"""What several verifiers of one run say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, rewarded


def combine(judged: Mapping[str, tuple[Verdict, float]]) -> tuple[Verdict, float]:
    """The verdict and reward of several verifiers on one sample.

    The reward is the mean of theirs. A completion is correct (or format-valid) if all of them find it so; those that
    abstain do not count. One that breaks leaves no reward: a part of a reward would be a wrong one.

    Args:
        judged: verdict and reward by the verifier's name.

    Returns:
        The verdict, and the reward, NaN if there is an error.
    """
    errors = [f"{name}: {verdict.error}" for name, (verdict, _) in judged.items() if verdict.error is not None]
    counted = [(verdict, reward) for verdict, reward in judged.values() if verdict.judged]
    if not errors and not counted:
        errors = [f"no verifier has a say on this sample: {', '.join(judged)} abstained"]
    verdicts = [verdict for verdict, _ in counted]
    correct = not errors and all(verdict.correct for verdict in verdicts)
    together = Verdict(
        correct=correct,
        format_valid=not errors and all(verdict.format_valid for verdict in verdicts),
        feedback=" ".join(verdict.feedback for verdict in verdicts if verdict.feedback),
        error="; ".join(errors) or None,
        correct_but_truncated=not errors and not correct and all(verdict.correct_if_ended for verdict in verdicts),
        reward_alone=any(verdict.reward_alone for verdict in verdicts),
    )
    return together, math.nan if errors else fmean(reward for _, reward in counted)


def judge_together(verifiers: Mapping[str, Verifier], samples: Sequence[Sample]) -> list[tuple[Verdict, float]]:
    """Judge samples with all verifiers of a run: the combined verdict and reward of each."""
    columns = {name: rewarded(verifier, samples) for name, verifier in verifiers.items()}
    return [combine({name: column[row] for name, column in columns.items()}) for row in range(len(samples))]
