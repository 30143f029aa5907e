"""One optimizer step: the gradients of all micro-batches are added up, clipped, and applied if they are finite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.optimization import advance
from grpo_lightning.errors import RunError
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.records import record
from grpo_lightning.speed.casts import cached_casts
from grpo_lightning.types import Attempt

log = logging.getLogger(__name__)

Losses = Callable[[Microbatch], Iterator[Tensor]]
"""Yields a micro-batch's shares of the losses of the whole step.

Each is propagated back before the next one is requested: the activations of two models need not be in memory together.
"""


class NonFiniteError(RunError):
    """The loss or the gradient was not finite in the updates of two consecutive training steps."""


class SkippedSteps:
    """Counts skipped optimizer steps. One bad rollout may spoil every update made on it."""

    def __init__(self) -> None:
        self.count = 0
        self._last: int | None = None

    def step_succeeded(self) -> None:
        """An optimizer step was made."""
        self._last = None

    def skip(self, norm: float, step: int, attempts: Sequence[Attempt], file: Path) -> None:
        """An optimizer step was skipped.

        Args:
            norm: the norm of the gradient.
            step: number of the training step that the optimizer step belongs to.
            attempts: what was learned from, written down for inspection; may be empty.
            file: where to write them; the number of skipped steps and a suffix are added to its name.

        Raises:
            NonFiniteError: this happened in the training step before, too, so it is not an accident.
        """
        self.count += 1
        where = ""
        if attempts:
            file = file.with_name(f"{file.name}-{self.count}.jsonl")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(record(attempt)) + "\n" for attempt in attempts))
            where = f" (its rollouts are in {file})"
        log.warning("the gradient's norm is %s: the step is skipped%s", norm, where)
        if self._last not in (None, step):
            raise NonFiniteError(
                f"the gradient was not finite in two consecutive training steps{where}: lower the learning rate, or "
                "look for a completion with an extreme log-prob there"
            )
        self._last = step


@dataclass(frozen=True)
class UpdateStep:
    """One optimizer step.

    The losses are divided by counts of the whole step, over all ranks, so the gradient does not depend on how the rows
    are cut. Every rank makes exactly one synchronised backward pass, even without rows.

    Args:
        trainer: knows the ranks, and the run directory.
        backward: Lightning's ``manual_backward``.
        policy: adds up gradients in place, where it can.
        optimizer: as Lightning wraps it.
        scheduler: stepped after the optimizer; ``None`` keeps the learning rate.
        sides: all parameters that require a gradient, split into what is clipped by separate norms, which are logged as
            ``optim/<side>grad_norm``.
        resting: parameters that this step does not change.
        max_grad_norm: each side's gradient is scaled down to this norm; ``None`` disables clipping.
        skipped: counts the steps whose gradient is not finite.
    """

    trainer: pl.Trainer
    backward: Callable[[Tensor], None]
    policy: Policy
    optimizer: LightningOptimizer
    scheduler: LRScheduler | None
    sides: dict[str, list[Parameter]]
    resting: Sequence[Parameter]
    max_grad_norm: float | None
    skipped: SkippedSteps

    @cached_casts()  # nothing changes the weights before `finish`
    def add_gradients(self, parts: Sequence[Microbatch], losses: Losses, metrics: StepMetrics) -> None:
        """Add up the gradients of some micro-batches.

        Args:
            parts: the micro-batches to learn from; may be empty.
            losses: see :data:`Losses`.
            metrics: what is logged is added here.
        """
        strategy = self.trainer.strategy
        for part in parts:
            # Gradients are added up on each rank, and exchanged once, by `finish`.
            alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
            with alone, self.policy.adding_gradients():
                for loss in losses(part):
                    # Strategies average gradients over ranks, and the loss has been divided by the count of all.
                    self.backward(loss * self.trainer.world_size)
            metrics.add("throughput/padding_efficiency", part.real_tokens, part.padded_tokens)

    def finish(self, metrics: StepMetrics, step: int, attempts: Sequence[Attempt]) -> None:
        """Apply what has been added up, or skip the step if the gradient is not finite.

        Args:
            metrics: what is logged is added here.
            step: number of the training step that this optimizer step belongs to.
            attempts: those learned from, written to disk if the gradient is not finite.

        Raises:
            NonFiniteError: the gradient was not finite in two consecutive training steps.
        """
        if self._has_idle_side() or isinstance(self.trainer.strategy, ParallelStrategy):
            # This adds nothing. It makes the ranks exchange what they have added up, which takes all weights.
            trained = [parameter for side in self.sides.values() for parameter in side]
            self.backward(torch.stack([0.0 * parameter.sum() for parameter in trained]).sum())
        norms = self._clip()
        # Gradients are the same on all ranks by now, so all of them decide alike.
        if torch.isfinite(norms).all():
            self.optimizer.step()
            if self.scheduler is not None:
                advance(self.scheduler)
            for name, norm in zip(self.sides, norms, strict=True):
                metrics.add(f"optim/{name}grad_norm", norm, 1)
            self.skipped.step_succeeded()
        else:
            name = f"step-{self.trainer.global_step:06d}-rank{self.trainer.global_rank}"
            file = Path(self.trainer.default_root_dir) / "nonfinite" / name
            self.skipped.skip(norms.max().item(), step, attempts, file)

    def _has_idle_side(self) -> bool:
        """Whether nothing was propagated back to a side that this step changes: its gradient is 0 then, not missing."""
        resting = set(self.resting)
        return any(
            all(parameter.grad is None and parameter not in resting for parameter in side)
            for side in self.sides.values()
        )

    def _clip(self) -> Tensor:
        """Clip the gradient of each side, and return the norms that they had before."""
        for parameter in self.resting:
            parameter.grad = None
        limit = torch.inf if self.max_grad_norm is None else self.max_grad_norm
        device = self.trainer.strategy.root_device
        return torch.stack([torch.nn.utils.clip_grad_norm_(side, limit).to(device) for side in self.sides.values()])
