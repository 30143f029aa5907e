"""What a ``Trainer`` must be given, and what it must not."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy

from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import has_static_graph
from grpo_lightning.rollout.datamodule import RolloutDataModule

_PRECISIONS = ("16-true", "bf16-true", "64-true")
_AVERAGING = (StochasticWeightAveraging, WeightAveraging)
_INSTEAD = {
    GradientAccumulationScheduler: "set model.max_tokens_per_microbatch instead",
    BatchSizeFinder: "set model.max_tokens_per_microbatch instead: grpo plan says what fits into the memory",
    LearningRateFinder: "it needs automatic optimization: compare short runs with another lr of model.optimizer",
    BackboneFinetuning: "the policy has no backbone and head: set model.policy.lora to train few weights",
}
"""Callbacks that a training step has no use for, and what to do instead."""
_RISING = ("val/accuracy", "val/reward", "val/pass@", "val/format_valid", "reward/mean", "reward/correct")
"""What curves begin with that are better the higher they are."""
_NEVER_CALLED = {
    "configure_gradient_clipping": "set model.max_grad_norm",
    "optimizer_step": "make the optimizer in configure_optimizers",
    "optimizer_zero_grad": "gradients are freed between steps",
    "lr_scheduler_step": "the schedule is stepped with the optimizer",
}
"""Hooks of Lightning's automatic optimization, and what to do instead."""


def refuse_unsupported(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse what training steps cannot work with, before a run starts.

    Raises:
        ConfigError: no RolloutDataModule, a precision that changes the weights or scales the loss, a strategy that
            shards the weights, a callback that averages them or takes the worst for the best, or a hook that is never
            called.
    """
    precision, strategy = str(trainer.precision), trainer.strategy
    if getattr(trainer.precision_plugin, "scaler", None) is not None or precision in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true, and set the type of the "
            "weights by model.policy.dtype"
        )
    is_ddp = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)  # which derives from it
    if isinstance(strategy, ParallelStrategy) and not is_ddp:
        raise ConfigError(
            f"trainer.strategy: {type(strategy).__name__} shards the weights; rollouts need them whole: use ddp, with "
            "model.shard_optimizer: true to shard the optimizer's state, or with model.policy.lora to have little of it"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, _AVERAGING):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} averages a copy of the whole module and swaps the "
                "weights that rollouts are drawn from: omit it, and use checkpoint.monitor or export.best to keep the "
                "best policy"
            )
        for kind, instead in _INSTEAD.items():
            if isinstance(callback, kind):
                raise ConfigError(f"trainer.callbacks: {kind.__name__}: {instead}")
        ranks = isinstance(callback, EarlyStopping | ModelCheckpoint)
        if ranks and callback.mode == "min" and (callback.monitor or "").startswith(_RISING):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__}.mode: {callback.monitor} is better when higher: set "
                "mode: max, since Lightning's default is min"
            )
    for name, instead in _NEVER_CALLED.items():
        if getattr(type(module), name) is not getattr(pl.LightningModule, name):
            raise ConfigError(
                f"{type(module).__name__}.{name}: is never called, as the module steps by itself: {instead}"
            )
    if isinstance(strategy, DDPStrategy) and has_static_graph(strategy):
        raise ConfigError("trainer.strategy: static_graph does not work with micro-batches: remove it")
    if not isinstance(getattr(trainer, "datamodule", None), RolloutDataModule):
        raise ConfigError(
            f"trainer: {type(module).__name__} takes its batches from a RolloutDataModule: call "
            "trainer.fit(module, datamodule=RolloutDataModule(task)), and likewise validate, test and predict"
        )
