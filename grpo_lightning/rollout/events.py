"""What a run tells its callbacks: typed events, beside Lightning's own hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from grpo_lightning.intervals import Interval
from grpo_lightning.rollout.experience import EvaluationBatch, Experience, Purpose

if TYPE_CHECKING:
    from grpo_lightning.rollout.datamodule import RolloutDataModule

ACCURACY, REWARD = "val/accuracy", "val/reward"


@dataclass(frozen=True)
class StepEnd:
    """A training step has been learned from.

    Args:
        step: training steps done before it, those before a resume included.
        metrics: what the step logged, over all ranks; only what was measured in this very step.
        experience: the attempts, with their advantages; ``None`` where a step learned from demonstrations.
    """

    step: int
    metrics: Mapping[str, float]
    experience: Experience | None = None


@dataclass(frozen=True)
class EvaluationEnd:
    """A pass through a split has ended.

    Args:
        purpose: ``val`` or ``test``.
        metrics: what it found, over all ranks, by the name it is logged under, such as ``val/accuracy``.
        prompts: how many prompts it sampled an answer to, over all ranks.
        accuracy: the accuracy with its interval; ``None`` if no answer could be judged, or some rewards do not tell
            right from wrong (``Verdict.reward_alone``).
        reward: the mean reward with its interval; ``None`` if no answer could be judged.
    """

    purpose: Purpose
    metrics: Mapping[str, float]
    prompts: int
    accuracy: Interval | None
    reward: Interval | None

    @property
    def result(self) -> tuple[str, Interval] | None:
        """The result to show, with its name: the accuracy, or the mean reward where there is none."""
        if self.accuracy is not None:
            return "accuracy", self.accuracy
        return None if self.reward is None else ("mean reward", self.reward)

    def ranked_by(self, before: str) -> str:
        """The curve that ranks validations: ``before``, and ``val/reward`` from the first one without an accuracy on.

        Whether rewards tell right from wrong may show late: the first completions may all have earned 0.
        """
        return REWARD if self.accuracy is None and self.reward is not None else before


class RunCallback(pl.Callback):
    """A Lightning callback with more hooks: override any of these, and any of Lightning's own."""

    data_module: RolloutDataModule
    """The data of the run, once it is loaded."""

    def reset(self) -> None:
        """Forget what an earlier run has left: a ``fit`` begins that does not continue it.

        Comes first, and before a checkpoint gives the state back. It does not come where ``fit`` of the same trainer
        continues.
        """

    def on_data_ready(self, trainer: pl.Trainer, data: RolloutDataModule, stage: str) -> None:
        """The data of a stage has been loaded; comes before Lightning's ``setup``. Sets :attr:`data_module`."""
        self.data_module = data

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        """A training step ends: its updates have been made and its curves logged. Comes before any checkpoint."""

    def on_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A training step is over: its curves are written, and a validation that was due has ended.

        Comes before the next step's rollouts. The last step is followed by :meth:`on_last_step_complete` instead.
        """

    def on_last_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The last training step is over; comes before Lightning's ``on_train_end`` of any callback."""

    def on_evaluation_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, purpose: Purpose, batch: EvaluationBatch
    ) -> None:
        """A batch of validation or test has been judged."""

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        """A validation or a test ends. Comes before Lightning's ``on_validation_end`` and before any checkpoint."""


def continues(trainer: pl.Trainer) -> bool:
    """Whether a ``fit`` continues an earlier one of the same trainer."""
    return trainer.global_step > 0 and trainer.ckpt_path is None


def run_callbacks(trainer: pl.Trainer) -> list[RunCallback]:
    """The callbacks of a trainer that are ``RunCallback``."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RunCallback)]  # type: ignore[attr-defined]


def step_ended(module: pl.LightningModule, end: StepEnd) -> None:
    """Tell the callbacks, and count the step as done: the last thing that a ``training_step`` does."""
    for callback in run_callbacks(module.trainer):
        callback.on_step_end(module.trainer, module, end)
