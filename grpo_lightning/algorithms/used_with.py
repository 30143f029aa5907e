"""What a callback may ask of the module that it is used with."""

from __future__ import annotations

import lightning.pytorch as pl

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.errors import ConfigError


def policy_module(module: pl.LightningModule, callback: pl.Callback) -> PolicyModule:
    """The module, as what the callback needs.

    Raises:
        ConfigError: it is not a :class:`PolicyModule`.
    """
    if not isinstance(module, PolicyModule):
        name = type(callback).__name__
        raise ConfigError(f"trainer.callbacks: {name} needs a PolicyModule, not {type(module).__name__}: remove {name}")
    return module
