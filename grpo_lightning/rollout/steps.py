"""When a training step is done, and when it is complete: the first callback of every ``fit``."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl

from grpo_lightning.rollout.events import RunCallback, StepEnd, run_callbacks
from grpo_lightning.rollout.loader import TrainLoader
from grpo_lightning.rollout.resumed import drop_curves


class StepCount(RunCallback):
    """Counts a step as done when the module reports it: one that broke off before that is made again on resume.

    Args:
        loader: returns the loader of this fit, whose place is counted on.
    """

    def __init__(self, loader: Callable[[], TrainLoader]) -> None:
        self.loader = loader
        self._incomplete = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._incomplete = False
        if trainer.ckpt_path is not None:
            drop_curves(trainer, self.loader().step)

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self.loader().step = end.step + 1
        self._incomplete = True

    def next_step_begins(self, trainer: pl.Trainer) -> None:
        """Tell the callbacks that the step before is complete; nothing where this start has made none."""
        if self._incomplete:
            self._incomplete = False
            for callback in run_callbacks(trainer):
                callback.on_step_complete(trainer, trainer.lightning_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the callbacks, whatever their order, before any of them concludes."""
        for callback in run_callbacks(trainer):
            callback.on_last_step_complete(trainer, pl_module)
