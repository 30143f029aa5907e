"""LoRA adapters on a base: fresh or loaded, which of several is active, and which are trained."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.models.weightless import is_weightless

log = logging.getLogger(__name__)

POLICY = "default"
"""The adapter of the policy, by peft's own name."""
REFERENCE = "reference"
"""The adapter that is the frozen reference."""
VALUE = "value"
"""The adapter of a critic."""


@dataclass
class LoRAConfig:
    """Low-rank adapters (arXiv 2106.09685) through peft. The adapters stay in float32 over a bfloat16 base.

    Args:
        r: rank.
        alpha: the update is scaled by ``alpha / r``.
        target_modules: ``all-linear`` (every linear layer but the head), or a list of module names. A list made for
            Llama adapts only a part of a hybrid such as LFM2.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"


def checked_base(adapter: str) -> str:
    """The path of an adapter's base.

    Raises:
        ConfigError: it is not a plain LoRA.
    """
    from peft import PeftConfig, PeftType

    saved = PeftConfig.from_pretrained(adapter)
    if saved.peft_type != PeftType.LORA:
        raise ConfigError(
            f"model.policy.path: the adapter in {adapter} is {PeftType(saved.peft_type).value}: give a LoRA "
            "adapter or a whole model"
        )
    variants = {
        "is a DoRA": saved.use_dora,
        "has biases": saved.lora_bias or saved.bias != "none",
        "repeats layers (layer_replication)": saved.layer_replication,
        "holds whole layers or rows (modules_to_save)": saved.modules_to_save,
        "holds whole layers or rows (trainable_token_indices)": saved.trainable_token_indices,
    }
    for variant, is_used in variants.items():
        if is_used:
            raise ConfigError(
                f"model.policy.path: the adapter in {adapter} {variant}, which is not supported: use a plain LoRA, or "
                "merge it into its base first"
            )
    return str(saved.base_model_name_or_path)


_BASE_QUANTIZATION = "base_quantization.json"


def note_base(adapter: Path, quantization: dict[str, Any] | None) -> None:
    """Write into the folder of an adapter how its base was quantised in training; no file if it was not.

    Args:
        adapter: the folder.
        quantization: the ``quantization_config`` of the base.
    """
    file = adapter / _BASE_QUANTIZATION
    file.unlink(missing_ok=True)
    if quantization is not None:
        file.write_text(json.dumps(quantization, indent=2, default=str) + "\n")


def check_base(adapter: str, is_quantised: bool) -> None:
    """Warn where an adapter that was trained over a 4-bit base is loaded over full weights.

    Args:
        adapter: the folder of an adapter; of one that this project has not written, nothing is known.
        is_quantised: whether the base is in 4 bits now.
    """
    if (Path(adapter) / _BASE_QUANTIZATION).is_file() and not is_quantised:
        log.warning(
            "the adapter in %s was trained over its base in 4 bits, and fits the full weights less well: for a policy, "
            "set model.policy.quantization to nf4; for another model, export it merged (export.merged)",
            adapter,
        )


def with_adapter(lm: Any, lora: LoRAConfig | None, adapter: str | None) -> Any:
    """The model with the adapter at a path, with a fresh one, or itself: what a program froze stays so, unless all is.

    Raises:
        ConfigError: the model has no layers of the configured names.
    """
    if adapter is not None and is_weightless():
        from peft import LoraConfig, get_peft_model

        saved = LoraConfig.from_pretrained(adapter)
        saved.inference_mode = False
        return get_peft_model(lm, saved)
    if adapter is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(lm, adapter, is_trainable=True)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        fresh = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM")
        try:
            return get_peft_model(lm, fresh)
        except ValueError as error:
            raise ConfigError(
                f"model.policy.lora.target_modules: {lora.target_modules} does not fit {type(lm).__name__}: "
                f"{first_line(error)}"
            ) from error
    if not any(parameter.requires_grad for parameter in lm.parameters()):
        lm.requires_grad_(True)
    return lm


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
    if name not in getattr(model, "peft_config", {}):
        return []
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
