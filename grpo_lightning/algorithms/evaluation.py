"""Accuracy and pass@k over a split, for validation and test, and the hooks that measure them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torchmetrics import MeanMetric

from grpo_lightning.functional import pass_at_k
from grpo_lightning.rollout.collector import EvalBatch
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.records import record
from grpo_lightning.rollout.scoring import reward_names
from grpo_lightning.types import FinishReason, Rollout
from grpo_lightning.verifiers.base import Verifier


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


class EvaluatedModule(pl.LightningModule):
    """Validation, test and predict of a policy: the same for every algorithm."""

    verifiers: dict[str, Verifier]

    @property
    def data(self) -> RolloutDataModule:
        """The data module of the run."""
        return cast(RolloutDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_validation_epoch_start(self) -> None:
        refinement = self.data.refinement
        refined = None
        if refinement is not None and refinement.val_feedback != "none":
            told = "gold_feedback" if refinement.val_feedback == "verdict" else "refinement"
            refined = f"accuracy_after_{told}"
        self._evaluation = Evaluation(self.data.pass_at_k, self.device, refined, reward_names(self.verifiers))

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._evaluation.update(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._evaluation.update(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The completions of a batch with their verdicts, as plain records."""
        single = [record(rollout) | {"sampled_for": "accuracy"} for rollout in batch.single]
        return single + [record(rollout) | {"sampled_for": "pass@k"} for rollout in batch.sampled or []]

    def _log_evaluation(self, split: str) -> None:
        for name, value in self._evaluation.compute().items():
            self.log(f"{split}/{name}", value, prog_bar=name == "accuracy")
