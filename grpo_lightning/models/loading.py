"""Loads models: with adapters, in 4 bits, or as architecture alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from grpo_lightning import hub
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.models.adapters import check_base, checked_base, with_adapter
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.dropout import turn_dropout_off
from grpo_lightning.models.quantised import (
    Quantization,
    check_bitsandbytes,
    compute_in,
    is_packed,
    kind_of,
    pack_weightless,
    quantization_options,
    stored_quantization,
)
from grpo_lightning.models.weightless import is_weightless, remember


def load_model(config: PolicyConfig, key: str = "model.policy.path") -> tuple[Any, bool]:
    """The model, with LoRA where asked for, and whether its adapter came from disk.

    Args:
        config: how to load it; inside :func:`~grpo_lightning.models.weightless.weightless` without weights.
        key: names the path in an error.

    Raises:
        ConfigError: the path does not hold a supported model.
    """
    path, adapter = config.path, None
    if config.is_adapter:
        adapter, path = path, checked_base(path)
    model = with_adapter(_load_causal_lm(path, config, key), config.lora, adapter)
    turn_dropout_off(model)
    remember(model)
    if adapter is not None and not is_weightless():
        check_base(adapter, any(is_packed(module) for module in model.modules()))
    return model, adapter is not None


def load_frozen(config: PolicyConfig, quantization: Quantization | None, key: str) -> Any:
    """A model that is read and never trained: its weights may be quantised, and an adapter is merged unless they are.

    Args:
        config: path, revision, dtype and attention of the model.
        quantization: quantise the linear layers while loading; ``None``: as they are.
        key: names the path in an error.

    Raises:
        ConfigError: the path does not hold a supported model, or what ``quantization`` needs is not installed.
    """
    if config.is_adapter and quantization is not None:
        raise ConfigError(f"{key}: {config.path} is an adapter: merge it into its base first, or omit quantization")
    if config.is_adapter:
        model = load_model(config, key)[0]
        if not any(is_packed(module) for module in model.modules()):
            model = model.merge_and_unload()
    else:
        model = _load_causal_lm(config.path, config, key, quantization, is_frozen=True)
        turn_dropout_off(model)
        remember(model)
    return model.requires_grad_(False).eval()


def _load_causal_lm(
    path: str, config: PolicyConfig, key: str, quantization: Quantization | None = None, is_frozen: bool = False
) -> Any:
    dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attn_implementation}
    quantization = quantization or config.quantization
    try:
        architecture = load_architecture(path, config, key, may_be_quantised=is_frozen)
        stored = stored_quantization(architecture) if config.init == "pretrained" else None
        if is_weightless():
            lm = AutoModelForCausalLM.from_config(architecture, **options)
            skipped = (stored or {}).get("llm_int8_skip_modules") or ()
            pack_weightless(lm, quantization or kind_of(stored), tuple(skipped))
        elif config.given is not None:
            lm = config.given[0]
        elif config.init == "random":
            lm = AutoModelForCausalLM.from_config(architecture, **options)
        else:
            if kind_of(stored) is not None:
                check_bitsandbytes(key, f"the quantised weights in {path}")
            options |= quantization_options(quantization, dtype, key.removesuffix("path") + "quantization")
            with hub.from_hub(path):
                lm = AutoModelForCausalLM.from_pretrained(path, revision=config.revision, **options)
        compute_in(lm, dtype, key)
    except ImportError as error:
        raise ConfigError(
            f"model.policy: {path} cannot be loaded with attn_implementation={config.attn_implementation} "
            f"here: {first_line(error)}"
        ) from error
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        if not Path(path).is_dir() and (isinstance(error, OSError) or not hub.is_name(path)):
            plan = "; grpo plan needs a folder with its config.json alone" if is_weightless() else ""
            raise ConfigError(f"{key}: {hub.why_not(path, first_line(error))}{plan}") from error
        if isinstance(error, OSError) and is_weightless():
            raise ConfigError(
                f"{key}: the folder {path} has no config.json that can be read, and grpo plan reads no other file of "
                "a model"
            ) from error
        raise ConfigError(f"{key}: {path} cannot be loaded as a causal language model: {error}") from error
    if hasattr(lm, "peft_config"):
        raise ConfigError(
            f"model.policy.path: {path} is an adapter: download it and name its folder to continue its training"
        )
    return lm


def load_architecture(
    path: str, config: PolicyConfig, key: str = "model.policy.path", may_be_quantised: bool = False
) -> PreTrainedConfig:
    """What the ``config.json`` of a model says; no weights are read.

    Args:
        path: the model's path; for an adapter, that of its base.
        config: how the model is loaded.
        key: names the path in an error.
        may_be_quantised: the model is never trained.

    Raises:
        ConfigError: the weights are quantised, and may not be, or would be quantised twice.
    """
    architecture = None if config.given is None else config.given[0].config
    if architecture is None:
        with hub.from_hub(path):
            architecture = AutoConfig.from_pretrained(path, revision=config.revision)
    stored = stored_quantization(architecture)
    if stored is None or config.init == "random" or may_be_quantised:
        return architecture
    method = getattr(stored.get("quant_method"), "value", stored.get("quant_method")) or "quantization_config"
    reason = f"{key}: the weights in {path} are quantised ({method})"
    if kind_of(stored) != "nf4":
        raise ConfigError(
            f"{reason}, and only 4-bit weights of bitsandbytes are supported under an adapter: give the model that "
            "they were quantised from, with model.policy.quantization nf4 and LoRA if memory is short"
        )
    if not config.has_lora:
        raise ConfigError(f"{reason}, so they stay frozen: add model.policy.lora, whose adapters are trained over them")
    if config.quantization is not None:
        raise ConfigError(f"{reason} already: omit model.policy.quantization")
    return architecture


def base_path(path: str) -> str:
    """Where the weights are: the base of an adapter, or the path itself."""
    adapter = Path(path) / "adapter_config.json"
    return str(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.is_file() else path


def vocabulary_size(config: PolicyConfig) -> int | None:
    """Rows of the embedding, by the ``config.json``; ``None`` if it does not say.

    Raises:
        ConfigError: the weights are quantised.
    """
    try:
        architecture = load_architecture(base_path(config.path), config)
    except ConfigError:
        raise
    except (OSError, ValueError):
        return None  # loading the model says what is wrong
    return getattr(architecture.get_text_config(), "vocab_size", None)
