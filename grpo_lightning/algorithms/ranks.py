"""Sums over all ranks, for what every rank must decide or divide by alike; and the times of a step's phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from grpo_lightning.algorithms.metrics import StepMetrics, stacked, widest
from grpo_lightning.phases import Phases


class RankedModule(pl.LightningModule):
    """A LightningModule that adds up over the ranks of its strategy. Every rank must make the same calls."""

    phases: Phases

    def all_ranks_sum(self, *counts: float | Tensor) -> list[float]:
        """Sums over all ranks."""
        device = self.trainer.strategy.root_device
        return cast(list[float], self.trainer.strategy.reduce(stacked(counts, device), reduce_op="sum").tolist())

    def all_ranks_moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (Bessel-corrected) std of the values of all ranks."""
        wide = values.to(widest(values.device))
        count, total, squares = self.all_ranks_sum(len(wide), wide.sum(), wide.square().sum())
        variance = (squares - total**2 / count) / (count - 1) if count > 1 else 0.0
        moments = torch.tensor([total / max(count, 1), max(variance, 0.0) ** 0.5], device=values.device)
        return moments[0], moments[1]

    def _gradients_of_this_rank(self) -> AbstractContextManager[Any]:
        """Backward passes inside add up gradients without exchanging them."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    @contextmanager
    def timed(self, metrics: StepMetrics, phase: str) -> Iterator[None]:
        """Log the seconds spent inside as ``time/<phase>_s``."""
        with self.phases(phase, self.device) as timed:
            yield
        metrics.add(f"time/{phase}_s", timed.seconds, 1)
        if phase == "update":
            metrics.add("throughput/train_tokens_per_s", 0, timed.seconds)
