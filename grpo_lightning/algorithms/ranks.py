"""Sums over all ranks, for what every rank must decide or divide by alike."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from grpo_lightning.algorithms.metrics import stacked, widest


class RankedModule(pl.LightningModule):
    """A LightningModule that adds up over the ranks of its strategy. Every rank must make the same calls."""

    def all_ranks_sum(self, *counts: float | Tensor) -> list[float]:
        """Sums over all ranks."""
        device = self.trainer.strategy.root_device
        return cast(list[float], self.trainer.strategy.reduce(stacked(counts, device), reduce_op="sum").tolist())

    def all_ranks_values(self, values_M: Tensor) -> Tensor:
        """The values of all ranks, end to end; each rank may have another number of them."""
        strategy = self.trainer.strategy
        if self.trainer.world_size == 1:
            return values_M
        most = strategy.reduce(torch.tensor(len(values_M), device=values_M.device), reduce_op="max")
        padded_M = values_M.new_full((int(most),), torch.nan)
        padded_M[: len(values_M)] = values_M
        gathered_M = strategy.all_gather(padded_M).flatten()
        return gathered_M[~gathered_M.isnan()]

    def all_ranks_moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (Bessel-corrected) std of the values of all ranks."""
        wide = values.to(widest(values.device))
        count, total, squares = self.all_ranks_sum(len(wide), wide.sum(), wide.square().sum())
        variance = (squares - total**2 / count) / (count - 1) if count > 1 else 0.0
        moments = torch.tensor([total / max(count, 1), max(variance, 0.0) ** 0.5], device=values.device)
        return moments[0], moments[1]
