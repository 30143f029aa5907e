"""What a checkpoint holds of a module: what is trained, the reference, and the counts of the run."""

from __future__ import annotations

from typing import Any

from torch import nn

from grpo_lightning.errors import ConfigError

CHECKPOINT_FORMAT = 1
"""The format of what is written. Checkpoints without a number have format 1."""


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def keep_trained(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Remove the frozen weights, which come from ``policy.path``, and note the format."""
    trained = trained_parameters(module)
    checkpoint["format"] = CHECKPOINT_FORMAT
    checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}


def check_checkpoint(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Check that a module can be loaded from a checkpoint.

    Raises:
        ConfigError: a newer version has written it, or it lacks a trained tensor of the module.
    """
    if checkpoint.get("format", 1) > CHECKPOINT_FORMAT:
        raise ConfigError(
            f"ckpt_path: the checkpoint has format {checkpoint['format']}, and this version reads formats up to "
            f"{CHECKPOINT_FORMAT}: install a newer grpo-lightning"
        )
    state = checkpoint["state_dict"]
    unfit = [
        name
        for name, parameter in trained_parameters(module).items()
        if name not in state or state[name].shape != parameter.shape
    ]
    if unfit:
        raise ConfigError(
            f"ckpt_path: the checkpoint is of another policy: {len(unfit)} of the trained tensors are missing "
            f"there or have another shape, such as {unfit[0]}: give the run's own model.policy options"
        )
