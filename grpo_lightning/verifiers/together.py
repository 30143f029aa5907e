"""What several verifiers of one run say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers._composite import conjunction, joined_errors, joined_feedback
from grpo_lightning.verifiers.base import MAX_REWARD, Verifier, rewarded


def combine(judged: Mapping[str, tuple[Verdict, float]]) -> tuple[Verdict, float]:
    """The verdict and reward of several verifiers on one sample.

    The reward is the mean of theirs. A completion is correct (or format-valid) if all of them find it so; those that
    abstain do not count. One that breaks leaves no reward: a part of a reward would be a wrong one.

    Args:
        judged: verdict and reward by the verifier's name.

    Returns:
        The verdict, and the reward, NaN if there is an error; a reward beyond :data:`MAX_REWARD` is one.
    """
    verdicts = [verdict for verdict, _ in judged.values() if verdict.judged]
    if any(verdict.error is not None for verdict, _ in judged.values()):
        together = joined_errors((name, verdict) for name, (verdict, _) in judged.items())
    elif not verdicts:
        together = Verdict(False, False, error=f"all verifiers abstained on this sample: {', '.join(judged)}")
    else:
        together = conjunction(verdicts)
    together = replace(
        together,
        feedback=joined_feedback(verdicts),
        reward_alone=any(verdict.reward_alone for verdict in verdicts),
    )
    rewards = [reward for verdict, reward in judged.values() if verdict.judged]
    reward = fmean(rewards) if together.error is None else math.nan
    if abs(reward) > MAX_REWARD:
        error = f"a reward of {reward:g} is beyond {MAX_REWARD:g}: divide it, or subtract a constant"
        return replace(together, error=error), math.nan
    return together, reward


def judge_together(verifiers: Mapping[str, Verifier], samples: Sequence[Sample]) -> list[tuple[Verdict, float]]:
    """Judge samples with all verifiers of a run: the combined verdict and reward of each."""
    columns = {name: rewarded(verifier, samples) for name, verifier in verifiers.items()}
    return [combine({name: column[row] for name, column in columns.items()}) for row in range(len(samples))]
