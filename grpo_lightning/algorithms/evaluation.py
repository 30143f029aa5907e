"""Accuracy and pass@k over a split, for validation and test, and the hooks that measure them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics import MeanMetric, SumMetric

from grpo_lightning.algorithms.metrics import RankedModule, widest
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import pass_at_k
from grpo_lightning.intervals import normal, wilson
from grpo_lightning.rollout import EvaluationBatch, EvaluationEnd, RolloutDataModule
from grpo_lightning.rollout.events import RunCallback, run_callbacks
from grpo_lightning.rollout.experience import Purpose
from grpo_lightning.rollout.records import record
from grpo_lightning.rollout.scoring import reward_names
from grpo_lightning.types import Attempt
from grpo_lightning.verifiers.base import Verifier


class Evaluation:
    """Means over one pass through a split; torchmetrics adds them up over batches and ranks.

    Attempts whose verifier broke count in no mean but ``errors``. A mean that no attempt counts in is omitted.

    Args:
        ks: the k of each pass@k.
        device: where the sums live.
        refined: what the accuracy after another attempt is logged as; ``None`` without refinement.
        rewards: the rewards by verifier that are logged, as ``reward/<name>``.
        has_turns: whether an environment replies, so that the turns of an episode are logged.
        tasks: the tasks of a mixture, each with an ``<name>/accuracy``.
    """

    def __init__(
        self,
        ks: Sequence[int],
        device: torch.device,
        refined: str | None = None,
        rewards: Sequence[str] = (),
        has_turns: bool = False,
        tasks: Sequence[str] = (),
    ) -> None:
        self.ks = ks
        self.has_turns = has_turns
        self.refined = refined
        self.rewards = rewards
        self.tasks = tasks
        names = ["accuracy", "format_valid", "reward", "errors", "length_mean", "truncated", *(f"pass@{k}" for k in ks)]
        names += [*([refined] if refined else []), *(["turns"] if has_turns else [])]
        names += [*(f"reward/{name}" for name in rewards), *(f"{task}/accuracy" for task in tasks)]
        self.means = {name: MeanMetric(nan_strategy="error").to(device) for name in names}
        self.counts = {name: SumMetric().to(device) for name in ("prompts", "judged", "correct", "reward_alone")}
        self.sums = {name: SumMetric().set_dtype(widest(device)).to(device) for name in ("reward", "squares")}
        # Every rank adds up every name, even if none of its rows counts in it.
        for mean in self.means.values():
            mean.update(0.0, 0.0)
        for total in (*self.counts.values(), *self.sums.values()):
            total.update(0.0)

    def update(self, batch: EvaluationBatch) -> None:
        for attempt, outcome in zip(batch.single.answers, batch.single.outcomes, strict=True):
            judged = outcome.verdict.error is None
            self.counts["prompts"].update(1)
            self.counts["judged"].update(judged)
            self.counts["correct"].update(judged and outcome.verdict.correct)
            self._see("errors", not judged)
            self._see("length_mean", outcome.tokens)
            self._see("truncated", outcome.is_truncated)
            if self.has_turns:
                self._see("turns", outcome.turns)
            if judged:
                self._see("accuracy", outcome.verdict.correct)
                self._see("format_valid", outcome.verdict.format_valid)
                self._see("reward", outcome.reward)
                self.counts["reward_alone"].update(outcome.verdict.reward_alone)
                self.sums["reward"].update(outcome.reward)
                self.sums["squares"].update(outcome.reward**2)
                if attempt.prompt.task in self.tasks:
                    self._see(f"{attempt.prompt.task}/accuracy", outcome.verdict.correct)
            for name in self.rewards:
                reward = outcome.rewards_by_verifier[name]
                if not math.isnan(reward):
                    self._see(f"reward/{name}", reward)
        for attempt in batch.single.last_attempts if self.refined else []:
            if self.refined and attempt.verdict.error is None:
                self._see(self.refined, attempt.verdict.correct)
        if batch.sampled is not None:
            for group in batch.sampled.in_groups(batch.sampled.answers):
                self._see_group(group)

    def compute(self) -> dict[str, torch.Tensor]:
        """The means, over all ranks."""
        means = {name: mean.compute() for name, mean in self.means.items()}
        return {name: mean for name, mean in means.items() if not mean.isnan()}

    def end(self, purpose: Purpose, metrics: Mapping[str, float]) -> EvaluationEnd:
        """The event that ends the pass, with the accuracy and the mean reward over all ranks."""
        prompts, judged, correct, alone = (int(count.compute()) for count in self.counts.values())
        total, squares = (float(value.compute()) for value in self.sums.values())
        accuracy = wilson(correct, judged) if judged and not alone else None
        return EvaluationEnd(purpose, metrics, prompts, accuracy, normal(total, squares, judged) if judged else None)

    def _see_group(self, group: Sequence[Attempt]) -> None:
        judged = [attempt.verdict for attempt in group if attempt.verdict.error is None]
        correct = sum(verdict.correct for verdict in judged)
        for k in self.ks:
            if len(judged) >= k:
                self._see(f"pass@{k}", pass_at_k(len(judged), correct, k))

    def _see(self, name: str, value: float) -> None:
        self.means[name].update(float(value))


class EvaluatedModule(RankedModule):
    """Validation, test and predict of a policy: the same for every algorithm."""

    verifiers: dict[str, Verifier]
    chat_template: str | None = None
    longest_row = 0

    @property
    def samples_to_learn(self) -> bool:
        """Whether training samples; else only evaluation does."""
        return False

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Take from the data what the policy is loaded with, and what an evaluation measures."""
        if not self.verifiers and data.environment is None:
            raise ConfigError("model.verifiers: give at least one, such as [{class_path: MathVerifier}]")
        self.chat_template = data.task.chat_template
        self.longest_row = data.longest_row(self.samples_to_learn)
        self._pass_at_k, self._refined, self._has_turns = data.pass_at_k, None, data.environment is not None
        self._tasks = list(data.task.shares)
        if data.refinement is not None and data.refinement.val_feedback != "none":
            feedback = "gold_feedback" if data.refinement.val_feedback == "verdict" else "refinement"
            self._refined = f"accuracy_after_{feedback}"

    def on_validation_epoch_start(self) -> None:
        names = reward_names(self.verifiers)
        options = (self._refined, names, self._has_turns, self._tasks)
        self._evaluation = Evaluation(self._pass_at_k, self.device, *options)

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        self._see("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        self._see("test", batch)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The completions of a batch with their verdicts, as plain records."""
        single = [record(attempt) | {"sampled_for": "accuracy"} for attempt in batch.single.answers]
        sampled = [] if batch.sampled is None else batch.sampled.answers
        return single + [record(attempt) | {"sampled_for": "pass@k"} for attempt in sampled]

    @property
    def _told(self) -> list[RunCallback]:
        """The callbacks that hear of an evaluation: none of Lightning's sanity check, which measures nothing."""
        return [] if self.trainer.sanity_checking else run_callbacks(self.trainer)

    def _see(self, purpose: Purpose, batch: EvaluationBatch) -> None:
        self._evaluation.update(batch)
        for callback in self._told:
            callback.on_evaluation_batch(self.trainer, self, purpose, batch)

    def _end_evaluation(self, purpose: Purpose) -> None:
        metrics = {f"{purpose}/{name}": float(value) for name, value in self._evaluation.compute().items()}
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name == f"{purpose}/accuracy")
        end = self._evaluation.end(purpose, metrics)
        for callback in self._told:
            callback.on_evaluation_end(self.trainer, self, end)
