"""Means over a whole step, its micro-batches and all ranks: sums are added up and divided once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class StepMetrics:
    """Adds up what a step logs.

    The names are declared up front, so that every rank reduces the same ones, whatever it had to compute.

    Args:
        means: logged as sum of values over sum of weights; omitted where the weights are 0.
        maxima: logged as the largest value seen.
        totals: logged as the sum of values.
        roots: logged as the root of what a mean would be.
    """

    def __init__(
        self,
        means: Sequence[str],
        maxima: Sequence[str] = (),
        totals: Sequence[str] = (),
        roots: Sequence[str] = (),
    ) -> None:
        self._totals = frozenset(totals)
        self._roots = frozenset(roots)
        names = [*means, *totals, *roots]
        self._sums: dict[str, float | Tensor] = dict.fromkeys(names, 0.0)
        self._weights: dict[str, float | Tensor] = dict.fromkeys(names, 0.0)
        self._maxima: dict[str, float | Tensor] = dict.fromkeys(maxima, -torch.inf)

    def add(self, name: str, total: float | Tensor, weight: float | Tensor = 0) -> None:
        """Add ``total``, the sum of ``weight`` values."""
        self._sums[name] = self._sums[name] + _detached(total)
        self._weights[name] = self._weights[name] + _detached(weight)

    def add_masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the values under a mask."""
        self.add(name, torch.where(mask, values, 0).sum(), mask.sum())

    def see(self, name: str, value: float | Tensor) -> None:
        """Take a value into a maximum."""
        self._maxima[name] = torch.maximum(torch.as_tensor(self._maxima[name]), torch.as_tensor(_detached(value)))

    def reduce(self, strategy: Strategy) -> dict[str, float]:
        """What to log, over all ranks. Every rank must call it."""
        device = strategy.root_device
        sums = stacked([*self._sums.values(), *self._weights.values()], device)
        sums = strategy.reduce(sums, reduce_op="sum")
        logged: dict[str, float] = {}
        count = len(self._sums)
        for name, total, weight in zip(self._sums, sums[:count].tolist(), sums[count:].tolist(), strict=True):
            if name in self._totals:
                logged[name] = total
            elif weight:
                logged[name] = (total / weight) ** 0.5 if name in self._roots else total / weight
        if self._maxima:
            maxima = strategy.reduce(stacked(list(self._maxima.values()), device), reduce_op="max")
            logged |= {
                name: value for name, value in zip(self._maxima, maxima.tolist(), strict=True) if value > -torch.inf
            }
        return logged


def stacked(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Scalars as one tensor, in the widest float type of the device."""
    return torch.stack([torch.as_tensor(value, dtype=widest(device), device=device) for value in values])


def widest(device: torch.device) -> torch.dtype:
    """The widest float type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _detached(value: float | Tensor) -> float | Tensor:
    return value.detach().to(widest(value.device)) if isinstance(value, Tensor) else float(value)
