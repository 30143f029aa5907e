"""What a step's rollouts say: rewards, lengths, times, and what came of further attempts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.functional import masked_std
from grpo_lightning.types import FinishReason, RolloutBatch

ROLLOUT_MEANS = (
    "reward/mean", "reward/std", "reward/correct", "reward/format_valid", "reward/errors",
    "reward/correct_after_refinement", "refinement/correct", "refinement/attempts",
    "completion/length_mean", "completion/truncated",
    "policy/truncation_gap",
    "time/rollout_s", "time/verify_s",
    "throughput/rollout_tokens_per_s",
)  # fmt: skip
ROLLOUT_MAXIMA = ("completion/length_max",)


def add_rollouts(batch: RolloutBatch, metrics: StepMetrics, reward_names: Sequence[str]) -> None:
    """Add a step's rollouts to its metrics; ``reward_names`` are those with curves ``reward/<name>`` of their own."""
    verdicts = [rollout.verdict for rollout in batch.rollouts]
    errors = sum(verdict.error is not None for verdict in verdicts)
    rewards_BG = batch.rewards_N.view(-1, batch.group_size)
    metrics.add("reward/errors", errors, len(verdicts))
    metrics.add_masked("reward/mean", batch.rewards_N, ~batch.rewards_N.isnan())
    metrics.add("reward/correct", sum(verdict.correct for verdict in verdicts), len(verdicts) - errors)
    metrics.add("reward/format_valid", sum(verdict.format_valid for verdict in verdicts), len(verdicts) - errors)
    metrics.add("reward/std", masked_std(rewards_BG, ~rewards_BG.isnan(), dim=1).sum(), len(rewards_BG))
    for name in reward_names:
        known = [r.rewards_by_verifier[name] for r in batch.rollouts if math.isfinite(r.rewards_by_verifier[name])]
        metrics.add(f"reward/{name}", sum(known), len(known))
    lengths_N = batch.tokens.completion_lengths_N
    metrics.add("completion/length_mean", lengths_N.sum(), len(batch))
    metrics.see("completion/length_max", lengths_N.max())
    truncated = sum(rollout.completion.finish_reason is FinishReason.LENGTH for rollout in batch.rollouts)
    metrics.add("completion/truncated", truncated, len(batch))
    for phase, seconds in batch.seconds.items():
        metrics.add(f"time/{phase}_s", seconds, 1)
    metrics.add("throughput/rollout_tokens_per_s", lengths_N.sum(), batch.seconds["rollout"])
    if batch.refinements:
        add_refinement(batch, metrics)


def add_refinement(batch: RolloutBatch, metrics: StepMetrics) -> None:
    """First attempts apart from what came after the feedback."""
    solved = [rollout.verdict.correct for rollout in batch.rollouts]
    roots = list(range(len(batch)))
    rounds = len(batch.refinements)
    for one in batch.refinements:
        roots = [roots[parent] for parent in one.parents]
        for root, rollout in zip(roots, one.rollouts, strict=True):
            solved[root] = solved[root] or rollout.verdict.correct
        metrics.add("refinement/correct", sum(rollout.verdict.correct for rollout in one.rollouts), len(one.rollouts))
        metrics.add("refinement/attempts", len(one.rollouts) / rounds, 1 / rounds)
    metrics.add("reward/correct_after_refinement", sum(solved), len(solved))


def add_truncation(batch: RolloutBatch, metrics: StepMetrics) -> None:
    """How far top-k, top-p and min-p moved the distribution drawn from, a token on average (nats)."""
    for rollout in batch.rollouts:
        drawn, whole = rollout.completion.sampling_logprobs, rollout.completion.logprobs
        metrics.add("policy/truncation_gap", sum(drawn) - sum(whole), len(drawn))
