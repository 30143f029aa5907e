"""What a checkpoint holds of a module: what is trained, the reference, and the counts of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch
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


class LoadableModule(pl.LightningModule, ABC):
    """A module that can be built with the weights of a checkpoint."""

    @abstractmethod
    def load_policy(self) -> None:
        """Load the policy, if that has not been done: all that is needed to generate."""

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **options: Any,
    ) -> Any:
        """Build a module from its options, with the weights of a checkpoint of a run with the same policy.

        Args:
            checkpoint_path: the checkpoint. It holds what was trained, and neither the frozen base nor the options.
            map_location: the device to load on, as for ``torch.load``; ``None`` for where the options put the policy.
            hparams_file: as in Lightning's signature, like the next two, and of no use here.
            strict: all that is trained must be there anyway.
            weights_only: nothing but weights is read anyway.
            options: those of the module: ``policy``, ``verifiers``, and what differs from the defaults.

        Raises:
            ConfigError: the options are missing, or the checkpoint is of another policy.
        """
        if hparams_file is not None or strict or weights_only is False:
            raise ConfigError(
                "load_from_checkpoint: omit hparams_file, strict=True and weights_only=False: a checkpoint holds the "
                "trained weights alone, of which none may be missing"
            )
        if not {"policy", "verifiers"} <= set(options):
            raise ConfigError(
                f"load_from_checkpoint: {checkpoint_path} holds the trained weights, and neither the base nor the "
                "options: give the module's policy=... and verifiers=..., or load the run's policy/ folder with "
                "transformers or peft"
            )
        module = cls(**options)
        module.load_policy()
        checkpoint = torch.load(checkpoint_path, weights_only=True, map_location=map_location or "cpu")
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        return module if map_location is None else module.to(next(iter(checkpoint["state_dict"].values())).device)
