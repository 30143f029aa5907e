"""Optimizer and schedule as configured; a resumed run has the learning rate of its config, not its checkpoint's."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from grpo_lightning.algorithms.sharded import ShardedOptimizer
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.ranks import world_size

log = logging.getLogger(__name__)

_TAKES_GRADIENTS_EARLY = "torchao.optim.cpu_offload"
"""The module of an optimizer whose hooks copy gradients to the host as soon as they are added up (torchao 0.18)."""


class Optimization:
    """Makes the optimizer and its schedule.

    Args:
        make_optimizer: makes an optimizer of parameters.
        make_scheduler: makes a schedule of an optimizer; ``None`` keeps the learning rate.
        shard: each of several ranks keeps the optimizer's state of a share of the parameters.
    """

    def __init__(
        self, make_optimizer: OptimizerCallable, make_scheduler: LRSchedulerCallable | None, shard: bool = False
    ) -> None:
        self.shard = shard
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self._rates: list[float] = []

    def configure(self, parameters: Any) -> Any:
        """What ``configure_optimizers`` returns to Lightning.

        Raises:
            ConfigError: the optimizer does not take its options, or the schedule waits for a metric.
        """
        optimizer, scheduler = self._make(parameters)
        self._rates = _initial_rates(optimizer, scheduler)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def apply_configured_rates(self, trainer: pl.Trainer, parameters: Any) -> None:
        """Give the restored optimizer and schedule of a resumed run the configured learning rates, if they differ.

        Nothing where a subclass's ``configure_optimizers`` made them itself.
        """
        if not self._rates:
            return
        (optimizer,), schedulers = trainer.optimizers, trainer.lr_scheduler_configs
        scheduler: Any = schedulers[0].scheduler if schedulers else None
        if _initial_rates(optimizer, scheduler) != self._rates:
            _apply_rates(optimizer, scheduler, *self._make(parameters))

    @staticmethod
    def check(trainer: pl.Trainer) -> None:
        """Check the optimizers and schedules of a run.

        Raises:
            ConfigError: a subclass's ``configure_optimizers`` returned what training steps cannot use.
        """
        name, schedulers = type(trainer.lightning_module).__name__, trainer.lr_scheduler_configs
        if len(trainer.optimizers) != 1 or len(schedulers) > 1:
            raise ConfigError(
                f"{name}.configure_optimizers: returned {len(trainer.optimizers)} optimizers and {len(schedulers)} "
                "schedules: a step takes one optimizer, whose groups may differ, and one schedule at most"
            )
        if schedulers:
            _refuse_waiting(schedulers[0].scheduler, f"{name}.configure_optimizers")

    def _make(self, parameters: Any) -> tuple[Optimizer, LRScheduler | None]:
        try:
            optimizer: Optimizer
            if self.shard and world_size() > 1:
                optimizer = ShardedOptimizer(parameters, self.make_optimizer)
            else:
                optimizer = self.make_optimizer(parameters)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"model.optimizer: {error}") from error
        if type(optimizer).__module__.startswith(_TAKES_GRADIENTS_EARLY):
            raise ConfigError(
                f"model.optimizer: {type(optimizer).__name__} copies each gradient during the backward pass, before it "
                "is clipped and checked: to keep the optimizer's state in host memory, use "
                "bitsandbytes.optim.PagedAdamW8bit or PagedAdamW"
            )
        if self.make_scheduler is None:
            return optimizer, None
        scheduler = self.make_scheduler(optimizer)
        _refuse_waiting(scheduler, "model.lr_scheduler")
        return optimizer, scheduler


def _refuse_waiting(scheduler: Any, place: str) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError(
            f"{place}: {type(scheduler).__name__} waits for a metric, but the schedule is stepped with the optimizer: "
            "take one that needs none"
        )


def _apply_rates(
    optimizer: Optimizer, scheduler: LRScheduler | None, configured: Optimizer, schedule: LRScheduler | None
) -> None:
    """Give a restored optimizer and its schedule the configured learning rates.

    Args:
        optimizer: the optimizer restored from a checkpoint.
        scheduler: the restored schedule, or ``None``.
        configured: an optimizer of the same parameters, just made from the config.
        schedule: its schedule, or ``None``; it is stepped as often as ``scheduler`` was.
    """
    if scheduler is not None and schedule is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(_steps(scheduler)):
                schedule.step()
        scheduler.load_state_dict(schedule.state_dict())
    for group, wanted in zip(optimizer.param_groups, configured.param_groups, strict=True):
        log.warning("learning rate: %g as configured, instead of the checkpoint's %g", wanted["lr"], group["lr"])
        # Some schedules keep their ends in the groups.
        group.update({key: wanted[key] for key in ("lr", "initial_lr", "max_lr", "min_lr") if key in wanted})


def _steps(scheduler: LRScheduler) -> int:
    """How often a schedule was stepped; a chained one does not say, but its parts do."""
    if isinstance(scheduler, ChainedScheduler):
        return _steps(scheduler._schedulers[0])
    return scheduler.last_epoch


def _initial_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> list[float]:
    """The learning rates that the schedule starts from, kept in the groups; without a schedule, the present ones."""
    key = "lr" if scheduler is None else "initial_lr"
    return [float(group[key]) for group in optimizer.param_groups]
