"""What a training step logs: names declared by class, sums over micro-batches and ranks, seconds of phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch import Tensor

from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.phases import Phases


class MeasuredModule(pl.LightningModule):
    """A LightningModule that measures its training steps. Subclasses extend the names with what they log."""

    loss_names: ClassVar[tuple[str, ...]] = ("policy/loss",)
    step_means: ClassVar[tuple[str, ...]] = (
        "policy/loss", "policy/entropy", "optim/grad_norm",
        "throughput/padding_efficiency", "throughput/train_tokens_per_s", "time/update_s",
    )  # fmt: skip
    step_maxima: ClassVar[tuple[str, ...]] = ()
    step_roots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phases = Phases()

    def step_metrics(self, *more: str) -> StepMetrics:
        """Metrics of a step, nothing added yet; ``more`` are names of means beside those of the class."""
        tokens = ("total/rollout_tokens", "total/train_tokens")
        return StepMetrics([*self.step_means, *more], self.step_maxima, tokens, self.step_roots)

    def add_loss(self, metrics: StepMetrics, name: str, loss: Tensor) -> Tensor:
        """Log a micro-batch's share of a loss under one of :attr:`loss_names`, and return it."""
        metrics.add(name, loss * self.trainer.world_size)
        return loss

    @contextmanager
    def timed(self, metrics: StepMetrics, phase: str) -> Iterator[None]:
        """Log the seconds spent inside as ``time/<phase>_s``."""
        with self.phases(phase, self.device) as timed:
            yield
        metrics.add(f"time/{phase}_s", timed.seconds, 1)
        if phase == "update":
            metrics.add("throughput/train_tokens_per_s", 0, timed.seconds)
