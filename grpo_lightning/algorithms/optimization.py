"""Optimizer and schedule as configured, also in a resumed run, which keeps the state of its checkpoint's optimizer."""

from __future__ import annotations

import inspect
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from grpo_lightning.algorithms.sharded import ShardedOptimizer
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.rollout.ranks import world_size

log = logging.getLogger(__name__)

_TAKES_GRADIENTS_EARLY = "torchao.optim.cpu_offload"
"""The module of an optimizer whose hooks copy gradients to the host as soon as they are added up (torchao 0.18)."""
_SCHEDULED = {"lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
"""The keys of an optimizer's groups that schedules write."""
_IMPLEMENTATION = {"fused", "foreach", "capturable", "differentiable"}
"""Options that change where an optimizer keeps its state, and no result: a restored state fits those of its run."""


@dataclass(frozen=True)
class _Saved:
    """The parts of a loaded checkpoint from which Lightning restores optimizer and schedule.

    Args:
        optimizer: class of the optimizer; ``None`` in checkpoints that do not name it.
        groups: options of its groups.
        schedules: states of the schedules.
        steps: optimizer steps made.
    """

    optimizer: str | None
    groups: list[dict[str, Any]]
    schedules: list[dict[str, Any]]
    steps: int


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
        self._saved: _Saved | None = None

    def configure(self, parameters: Any, is_resumed: bool) -> Any:
        """What ``configure_optimizers`` returns to Lightning.

        Args:
            parameters: what the optimizer is made of.
            is_resumed: whether Lightning restores the loaded checkpoint afterwards: the options of the optimizer, and
                the schedule as if it had been there from the start, are then those of the config.

        Raises:
            ConfigError: the optimizer or the schedule does not take its options, cannot be used, or does not fit the
                checkpoint.
        """
        optimizer, scheduler = self._make(parameters)
        if is_resumed and self._saved is not None:
            _keep_configured(optimizer, scheduler, self._saved)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    @staticmethod
    def save(checkpoint: dict[str, Any], trainer: pl.Trainer) -> None:
        """Note in a checkpoint which optimizer its state is of."""
        checkpoint["optimizer_class"] = next((_class_name(optimizer) for optimizer in trainer.optimizers), None)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Remember what Lightning restores from a checkpoint, for :meth:`configure`."""
        groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
        schedules = checkpoint.get("lr_schedulers", [])
        self._saved = _Saved(checkpoint.get("optimizer_class"), groups, schedules, checkpoint["global_step"])

    def check_length(self, max_steps: int, steps_per_rollout: int) -> None:
        """Warn where a run with a schedule makes more optimizer steps than ``trainer.max_steps`` says."""
        made = -(-max_steps // steps_per_rollout) * steps_per_rollout
        if self.make_scheduler is not None and made > max_steps > 0:
            log.warning(
                "trainer.max_steps: %d falls among the %d optimizer steps of a rollout, which are all made: set it and "
                "the length of model.lr_scheduler to %d",
                max_steps, steps_per_rollout, made,
            )  # fmt: skip

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
        _refuse_unusable(_plain(optimizer))
        if self.make_scheduler is None:
            return optimizer, None
        try:
            scheduler = self.make_scheduler(optimizer)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"model.lr_scheduler: {first_line(error)}") from error
        _refuse_waiting(scheduler, "model.lr_scheduler")
        try:
            scheduler.state_dict()
        except AttributeError as error:  # of a function that is not written in Python
            raise ConfigError(
                f"model.lr_scheduler: {type(scheduler).__name__} cannot be saved: {first_line(error)}"
            ) from error
        return optimizer, scheduler


def advance(scheduler: LRScheduler) -> None:
    """Step a schedule.

    Raises:
        ConfigError: it has no further step.
    """
    try:
        scheduler.step()
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"model.lr_scheduler: {type(scheduler).__name__}: {first_line(error)}") from error


def _keep_configured(optimizer: Optimizer, scheduler: LRScheduler | None, saved: _Saved) -> None:
    """Change what Lightning restores, so that options and schedule stay those of the config; say what differs.

    Args:
        optimizer: as configured.
        scheduler: its schedule, at its start; stepped as often as the checkpoint's optimizer was.
        saved: what Lightning restores; changed in place.

    Raises:
        ConfigError: the optimizer cannot continue from the saved state, or the schedule ends before.
    """
    name = _class_name(optimizer)
    if saved.optimizer not in (None, name):
        raise ConfigError(
            f"model.optimizer: the checkpoint holds the state of {saved.optimizer}, from which {name} cannot continue: "
            "resume with the former, or start a new run from the exported policy"
        )
    changes = []
    if scheduler is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(saved.steps):
                advance(scheduler)
    if saved.schedules != ([] if scheduler is None else [scheduler.state_dict()]):
        changes.append("no schedule" if scheduler is None else f"schedule {type(scheduler).__name__}")
    saved.schedules.clear()
    keys = (_constructor_options(_plain(optimizer)) | _SCHEDULED) - _IMPLEMENTATION
    for group, restored in zip(optimizer.param_groups, saved.groups, strict=False):
        for key in [key for key in group if key in keys]:
            value, old = group[key], restored.get(key, group[key])
            if value == old:
                continue
            if isinstance(value, bool):
                raise ConfigError(
                    f"model.optimizer.{key}: is {value}, but the checkpoint's optimizer state was made with {old}: "
                    f"resume with {old}"
                )
            restored[key] = value
            if key == "lr" or key not in _SCHEDULED:
                changes.append(f"{key} {_short(value)} (was {_short(old)})")
    if changes:
        log.warning("resumed with the config, where the checkpoint differs: %s", ", ".join(dict.fromkeys(changes)))


def _constructor_options(optimizer: Optimizer) -> set[str]:
    """What a config can set. Some optimizers keep state of their own beside it in their groups."""
    kinds = type(optimizer).__mro__
    return {name for kind in kinds for name in inspect.signature(kind).parameters} - {"params"}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer that does the work."""
    return optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer


def _class_name(optimizer: Optimizer) -> str:
    """Package and class: libraries move classes between their modules."""
    kind = type(_plain(optimizer))
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _refuse_unusable(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if type(optimizer).__module__.startswith(_TAKES_GRADIENTS_EARLY):
        raise ConfigError(
            f"model.optimizer: {name} copies each gradient during the backward pass, before it is clipped and checked: "
            "to keep the optimizer's state in host memory, use bitsandbytes.optim.PagedAdamW8bit or PagedAdamW"
        )
    if isinstance(optimizer, LBFGS):
        raise ConfigError(f"model.optimizer: {name} computes the loss several times per step: use one such as AdamW")
    if isinstance(optimizer, SparseAdam):
        raise ConfigError(f"model.optimizer: {name} takes sparse gradients alone: use one such as AdamW")


def _refuse_waiting(scheduler: Any, place: str) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError(
            f"{place}: {type(scheduler).__name__} waits for a metric, but the schedule is stepped with the optimizer: "
            "take one that needs none"
        )
