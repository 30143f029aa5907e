"""Several LoRA adapters on one base: which is active, and which are trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

POLICY = "default"
"""The adapter of the policy, by peft's own name."""
REFERENCE = "reference"
"""The adapter that is the frozen reference."""
VALUE = "value"
"""The adapter of a critic."""


def add_adapter(model: Any, name: str, trained: bool = False) -> None:
    """Give a peft model another adapter of the policy's shape. The policy's stays the active one.

    Args:
        model: a peft model with an adapter :data:`POLICY`.
        name: the new adapter's name. Its values are peft's initial ones, with which it does nothing.
        trained: whether the new adapter requires gradients. For all others nothing changes.
    """
    with _keeping_trained(model):
        model.add_adapter(name, model.peft_config[POLICY])
        model.base_model.set_adapter(POLICY)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(trained)


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Inside, the adapter ``name`` is active instead of the policy's. What is trained stays so, inside and after."""
    with _keeping_trained(model) as keep_trained:
        model.base_model.set_adapter(name, inference_mode=True)
        keep_trained()
        try:
            yield
        finally:
            model.base_model.set_adapter(POLICY)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Inside, a model is its base. Nothing happens to a model without adapters."""
    if not hasattr(model, "peft_config"):
        yield
        return
    with _keeping_trained(model), model.disable_adapter():
        yield


@contextmanager
def _keeping_trained(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Undo, at the end and when called, that peft freezes the adapters which it deactivates."""
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def restore() -> None:
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)

    try:
        yield restore
    finally:
        restore()


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of one adapter; none if the model does not have it."""
    return [p for path, p in model.named_parameters() if re.search(rf"\.lora_\w+\.{name}(\.|$)", path)]


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of one adapter, by names that are the same for all adapters."""
    return {
        path.replace(f".{name}", ""): parameter.data
        for path, parameter in model.named_parameters()
        if f".{name}." in f"{path}."
    }


def copy_adapter(model: nn.Module, source: str, to: str) -> None:
    """Give one adapter the values of another."""
    values = adapter_tensors(model, source)
    with torch.no_grad():
        for path, tensor in adapter_tensors(model, to).items():
            tensor.copy_(values[path])
