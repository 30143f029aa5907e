"""What a training step logs: names declared by class, and means over micro-batches and ranks, divided once; sums over
ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from grpo_lightning.functional import explained_variance
from grpo_lightning.phases import Phases


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
        self._sums: dict[str, list[float | Tensor]] = {name: [] for name in names}
        self._weights: dict[str, list[float | Tensor]] = {name: [] for name in names}
        self._maxima: dict[str, list[float | Tensor]] = {name: [] for name in maxima}

    def add(self, name: str, total: float | Tensor, weight: float | Tensor = 0) -> None:
        """Add ``total``, the sum of ``weight`` values."""
        for sums, value in ((self._sums, total), (self._weights, weight)):
            sums[name].append(value.detach().clone() if isinstance(value, Tensor) else value)

    def add_masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the values under a mask."""
        self.add(name, torch.where(mask, values, 0).sum(), mask.sum())

    def see(self, name: str, value: float | Tensor) -> None:
        """Take a value into a maximum."""
        self._maxima[name].append(value.detach().clone() if isinstance(value, Tensor) else value)

    def reduce(self, strategy: Strategy) -> dict[str, float]:
        """What to log, over all ranks. Every rank must call it."""
        device = strategy.root_device
        columns = self._floats(device)
        count = len(self._sums)
        sums = strategy.reduce(
            stacked([sum(column) for column in columns[: 2 * count]], device), reduce_op="sum"
        ).tolist()
        logged: dict[str, float] = {}
        for name, total, weight in zip(self._sums, sums[:count], sums[count:], strict=True):
            if name in self._totals:
                logged[name] = total
            elif weight:
                logged[name] = (total / weight) ** 0.5 if name in self._roots else total / weight
        if self._maxima:
            largest = [stacked([-torch.inf, *seen], device).max() for seen in columns[2 * count :]]
            maxima = strategy.reduce(torch.stack(largest), reduce_op="max").tolist()
            logged |= {name: value for name, value in zip(self._maxima, maxima, strict=True) if value > -torch.inf}
        return logged

    def _floats(self, device: torch.device) -> list[list[float]]:
        """All that has been added, in order: one list per sum, weight and maximum. One transfer from the device."""
        columns = [*self._sums.values(), *self._weights.values(), *self._maxima.values()]
        tensors = [value for column in columns for value in column if isinstance(value, Tensor)]
        numbers = iter(stacked(tensors, device).tolist() if tensors else ())
        return [[next(numbers) if isinstance(value, Tensor) else value for value in column] for column in columns]


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

    def all_ranks_explained_variance(self, errors: Tensor, returns: Tensor) -> float:
        """The share of the variance of the returns of all ranks that values with these errors explain."""
        return explained_variance(*(float(self.all_ranks_moments(values)[1]) for values in (errors, returns)))


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
        self._logged: dict[str, float] | None = None
        self._logged_step = 0

    def step_metrics(self, *more: str) -> StepMetrics:
        """Metrics of a step, nothing added yet; ``more`` are names of means beside those of the class."""
        tokens = ("total/rollout_tokens", "total/train_tokens")
        return StepMetrics([*self.step_means, *more], self.step_maxima, tokens, self.step_roots)

    def add_loss(self, metrics: StepMetrics, name: str, loss: Tensor) -> Tensor:
        """Log a micro-batch's share of a loss under one of :attr:`loss_names`, and return it."""
        metrics.add(name, loss * self.trainer.world_size)
        return loss

    def count_trained(self, metrics: StepMetrics, lengths_N: Tensor, completion_lengths_N: Tensor) -> None:
        """Log the tokens of the rows that an optimizer step learns from: of all that it runs over, and of those with a
        gradient."""
        metrics.add("throughput/train_tokens_per_s", lengths_N.sum())
        metrics.add("total/train_tokens", completion_lengths_N.sum())

    @contextmanager
    def timed(self, metrics: StepMetrics, phase: str) -> Iterator[None]:
        """Log the seconds spent inside as ``time/<phase>_s``."""
        with self.phases(phase, self.device) as timed:
            yield
        metrics.add(f"time/{phase}_s", timed.seconds, 1)
        if phase in ("update", "value"):  # a critic learns in both
            metrics.add("throughput/train_tokens_per_s", 0, timed.seconds)

    # -- logging ----------------------------------------------------------------------------------------------------

    def collect_logged(self, step: int) -> None:
        """Collect what :meth:`log` is given in a step from now on, until :meth:`write_logged`.

        A subclass may have a hook that does not call its parent's. What is then still there is written now.
        """
        self.write_logged()
        self._logged, self._logged_step = {}, step

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """As Lightning's ``log``; the numbers of a training step are collected and written at once.

        Lightning makes a torchmetrics object for each name and puts each value through it. For the curves of a step
        that takes as long as the step of a tiny model. A number that all ranks share needs none of it: callbacks find
        it in ``trainer.callback_metrics`` at once.
        """
        is_plain = not args and options.keys() <= {"prog_bar", "batch_size"}
        if self._logged is None or not self.trainer.training or not is_plain or not isinstance(value, int | float):
            super().log(name, value, *args, **options)
            return
        self._logged[name] = value
        found = torch.tensor(float(value))
        self.trainer.callback_metrics[name] = self.trainer.logged_metrics[name] = found
        if options.get("prog_bar"):
            self.trainer.progress_bar_metrics[name] = value

    def write_logged(self) -> None:
        """Give the loggers what has been collected, where ``trainer.log_every_n_steps`` asks for that step."""
        trainer, step, logged, self._logged = self.trainer, self._logged_step, self._logged, None
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if logged and every and ((step + 1) % every == 0 or trainer.should_stop):
            for logger in trainer.loggers:
                logger.log_metrics(logged | {"epoch": trainer.current_epoch}, step=step)
                logger.save()


def stacked(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Scalars as one tensor, in the widest float type of the device."""
    return torch.stack([torch.as_tensor(value, dtype=widest(device), device=device) for value in values])


def widest(device: torch.device) -> torch.dtype:
    """The widest float type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
