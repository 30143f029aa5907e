"""The learning rate of a resumed run: that of its config, for a checkpoint brings its own."""

from __future__ import annotations

import logging
import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

log = logging.getLogger(__name__)


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
