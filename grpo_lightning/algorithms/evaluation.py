"""Accuracy and pass@k over a split, for validation and test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torchmetrics import MeanMetric

from grpo_lightning.functional import pass_at_k
from grpo_lightning.rollout.collector import EvalBatch
from grpo_lightning.types import FinishReason, Rollout


class Evaluation:
    """Means over one pass through a split; torchmetrics adds them up over batches and ranks.

    Rollouts whose verifier broke are left out of every mean but ``errors``.

    Args:
        ks: the k of each pass@k.
        device: where the sums live.
        refined: what the accuracy after another attempt is logged as; ``None`` without refinement.
        rewards: the rewards by verifier that are logged, as ``reward/<name>``. One that no rollout had is left out.
    """

    def __init__(
        self, ks: Sequence[int], device: torch.device, refined: str | None = None, rewards: Sequence[str] = ()
    ) -> None:
        names = ["accuracy", "format_valid", "reward", "errors", "length_mean", "truncated", *(f"pass@{k}" for k in ks)]
        self.ks = ks
        self.refined = refined
        self.means = {
            name: MeanMetric(nan_strategy="error").to(device) for name in [*names, *([refined] if refined else [])]
        }
        self.rewards = {name: MeanMetric(nan_strategy="error").to(device) for name in rewards}

    def update(self, batch: EvalBatch) -> None:
        for rollout in batch.single:
            self._see("errors", rollout.verdict.error is not None)
            self._see("length_mean", len(rollout.completion.token_ids))
            self._see("truncated", rollout.completion.finish_reason is FinishReason.LENGTH)
            if rollout.verdict.error is None:
                self._see("accuracy", rollout.verdict.correct)
                self._see("format_valid", rollout.verdict.format_valid)
                self._see("reward", rollout.reward)
            for name, mean in self.rewards.items():
                reward = rollout.rewards_by_verifier[name]
                # Every rank adds up every name, also where no row of its own had that reward.
                mean.update(0.0 if math.isnan(reward) else reward, 0.0 if math.isnan(reward) else 1.0)
        for rollout in batch.refined or []:
            if self.refined and rollout.verdict.error is None:
                self._see(self.refined, rollout.verdict.correct)
        if batch.sampled is not None:
            for start in range(0, len(batch.sampled), batch.group_size):
                self._see_group(batch.sampled[start : start + batch.group_size])

    def compute(self) -> dict[str, torch.Tensor]:
        """The means, over all ranks."""
        rewards = {f"reward/{name}": mean.compute() for name, mean in self.rewards.items()}
        rewards = {name: mean for name, mean in rewards.items() if not mean.isnan()}
        return {name: mean.compute() for name, mean in self.means.items()} | rewards

    def _see_group(self, group: Sequence[Rollout]) -> None:
        judged = [rollout.verdict for rollout in group if rollout.verdict.error is None]
        correct = sum(verdict.correct for verdict in judged)
        for k in self.ks:
            if len(judged) >= k:
                self._see(f"pass@{k}", pass_at_k(len(judged), correct, k))

    def _see(self, name: str, value: float) -> None:
        self.means[name].update(float(value))
