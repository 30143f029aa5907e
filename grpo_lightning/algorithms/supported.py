"""What a ``Trainer`` must be given, and what it must not."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import has_static_graph
from grpo_lightning.rollout.datamodule import RolloutDataModule

_PRECISIONS = ("16-true", "bf16-true", "64-true")
_AVERAGING = (StochasticWeightAveraging, WeightAveraging)


def refuse_unsupported(trainer: pl.Trainer) -> None:
    """Raises:
    ConfigError: no RolloutDataModule, a precision that changes the weights or scales the loss, a strategy that shards
        the weights, or a callback that averages them.
    """
    precision, strategy = str(trainer.precision), trainer.strategy
    if getattr(trainer.precision_plugin, "scaler", None) is not None or precision in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true, and set the type of the "
            "weights by model.policy.dtype"
        )
    if isinstance(strategy, ParallelStrategy) and not isinstance(strategy, DDPStrategy):
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
    if isinstance(strategy, DDPStrategy) and has_static_graph(strategy):
        raise ConfigError("trainer.strategy: static_graph does not work with micro-batches: remove it")
    if not isinstance(getattr(trainer, "datamodule", None), RolloutDataModule):
        raise ConfigError(
            f"trainer: {type(trainer.lightning_module).__name__} takes its batches from a RolloutDataModule: call "
            "trainer.fit(module, datamodule=RolloutDataModule(task)), and likewise validate, test and predict"
        )
