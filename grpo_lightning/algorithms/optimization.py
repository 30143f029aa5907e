"""Optimizer and schedule as configured; a resumed run has the learning rate of its config, not its checkpoint's."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from grpo_lightning.errors import ConfigError

log = logging.getLogger(__name__)


def optimizer_and_schedule(
    make_optimizer: OptimizerCallable, make_scheduler: LRSchedulerCallable | None, parameters: Any
) -> tuple[Optimizer, LRScheduler | None]:
    """Both, of some parameters; ``None`` for a schedule that is not configured.

    Raises:
        ConfigError: the optimizer does not take its options, or the schedule waits for a metric.
    """
    try:
        optimizer = make_optimizer(parameters)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.optimizer: {error}") from error
    if make_scheduler is None:
        return optimizer, None
    scheduler = make_scheduler(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError(
            f"model.lr_scheduler: {type(scheduler).__name__} waits for a metric, but the schedule is stepped with the "
            "optimizer: take one that needs none"
        )
    return optimizer, scheduler


def take_up_configured(
    optimizer: Optimizer, scheduler: LRScheduler | None, configured: Optimizer, schedule: LRScheduler | None
) -> None:
    """Give an optimizer and its schedule, as restored, the learning rates that are configured.

    Args:
        optimizer: restored from a checkpoint.
        scheduler: of it.
        configured: an optimizer of the same parameters, just made from the config.
        schedule: of that one; it is run up to where ``scheduler`` is.
    """
    if scheduler is not None and schedule is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(_steps(scheduler)):
                schedule.step()
        scheduler.load_state_dict(schedule.state_dict())
    for group, wanted in zip(optimizer.param_groups, configured.param_groups, strict=True):
        log.warning("learning rate: %g as configured, in place of the checkpoint's %g", wanted["lr"], group["lr"])
        # Some schedules keep their ends in the groups.
        group.update({key: wanted[key] for key in ("lr", "initial_lr", "max_lr", "min_lr") if key in wanted})


def _steps(scheduler: LRScheduler) -> int:
    """How often it was stepped; a chained one does not say, but its parts do."""
    if isinstance(scheduler, ChainedScheduler):
        return _steps(scheduler._schedulers[0])
    return scheduler.last_epoch


def initial_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> list[float]:
    """What the schedule starts from, which it leaves in the groups; without one, the present learning rates."""
    key = "lr" if scheduler is None else "initial_lr"
    return [float(group[key]) for group in optimizer.param_groups]
