"""Dropout of models, which is off in every pass."""

from __future__ import annotations

from torch import nn


def turn_dropout_off(model: nn.Module) -> None:
    """In every pass, that of an adapter from disk too: rollouts and updates see the same policy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Many models hand a probability of their own to a function.
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)
