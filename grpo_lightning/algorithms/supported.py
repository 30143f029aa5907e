"""What a ``Trainer`` may be told."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import has_static_graph

_PRECISIONS = ("16-true", "bf16-true", "64-true")


def refuse_unsupported(trainer: pl.Trainer) -> None:
    """Raises:
    ConfigError: a precision that lays hand on the weights or scales the loss, or a strategy that deals weights out.
    """
    precision, strategy = str(trainer.precision), trainer.strategy
    if getattr(trainer.precision_plugin, "scaler", None) is not None or precision in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true, and set the type of the "
            "weights by model.policy.dtype"
        )
    if isinstance(strategy, ParallelStrategy) and not isinstance(strategy, DDPStrategy):
        raise ConfigError(
            f"trainer.strategy: {type(strategy).__name__} deals out weights, which rollouts need whole: use ddp"
        )
    if isinstance(strategy, DDPStrategy) and has_static_graph(strategy):
        raise ConfigError("trainer.strategy: static_graph does not suit micro-batches: leave it out")
