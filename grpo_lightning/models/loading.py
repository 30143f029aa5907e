"""What a policy is loaded from, and the loading itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning import hub
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.models.adapters import LoRAConfig, check_base, checked_base, with_adapter
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
from grpo_lightning.shipped import shipped_model
from grpo_lightning.speed.registry import NAMES


@dataclass
class PolicyConfig:
    """How to load the policy.

    Args:
        path: hub name or local folder of a transformers model, or the folder of a peft adapter, whose training
            then continues.
        revision: branch, tag or commit of a hub model.
        dtype: type of the weights. ``bfloat16`` suits a frozen base under LoRA; without LoRA, train ``float32`` weights
            and let ``trainer.precision: bf16-mixed`` do the arithmetic, or small updates round away.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; ``None`` is transformers' choice.
        init: ``pretrained`` loads weights; ``random`` builds the architecture of ``path`` with fresh weights.
        lora: train low-rank adapters over frozen weights; ``None`` trains all weights.
        quantization: ``nf4`` quantises the frozen linear layers under LoRA to 4 bits while loading (QLoRA), which
            needs ``grpo-lightning[quantised]``; default: the weights as they are, quantised if ``path`` holds 4-bit
            weights of bitsandbytes. ``dtype`` is then that of the other weights and of the arithmetic.
        reference: the frozen policy of the KL term. ``auto`` is ``none`` where nobody asks for a KL, ``adapter-off``
            for a fresh LoRA (the base itself, no copy), ``snapshot`` for an adapter that was loaded, and ``copy``
            without LoRA.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        chat_template_kwargs: values of the chat template's variables, such as ``{enable_thinking: false}``, for
            rollouts, SFT and the exported tokenizer. ``data.task.init_args.chat_template`` replaces the template.
        without: names of shortcuts to switch off. The results are the same without them, up to rounding; the log and
            ``grpo plan`` list them.
        compile: compile the layers of passes with gradients with ``torch.compile``, which takes minutes on a CPU when a
            run starts. Off, for no gain has been measured yet: see ``docs/performance.md``.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    lora: LoRAConfig | None = None
    quantization: Literal["nf4"] | None = None
    reference: Literal["auto", "none", "adapter-off", "snapshot", "copy"] = "auto"
    gradient_checkpointing: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    compile: bool = False
    given: tuple[PreTrainedModel, PreTrainedTokenizerBase | None] | None = field(default=None, init=False, repr=False)
    """The model object that a program passed, and its tokenizer; see :meth:`from_model`."""

    @classmethod
    def of(cls, given: Any) -> PolicyConfig:
        """Return the config for what a program passes: a config, a path, a model, or ``(model, tokenizer)``.

        Raises:
            ConfigError: it is none of them.
        """
        if isinstance(given, PolicyConfig):
            return given if given.given is not None else replace(given, path=shipped_model(given.path))
        if isinstance(given, (str, Path)):
            return cls(path=shipped_model(str(given)))
        model, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        return cls.from_model(model, tokenizer)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        lora: LoRAConfig | None = None,
        reference: Literal["auto", "none", "adapter-off", "snapshot", "copy"] = "auto",
        gradient_checkpointing: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        without: list[str] | None = None,
        compile: bool = False,
    ) -> PolicyConfig:
        """A policy that is a model object, trained in place. A run is resumed with the model as it was before training.

        Args:
            model: a causal language model of transformers, without an adapter.
            tokenizer: its tokenizer; default: that of ``model.name_or_path``. It is copied.
            lora: see the class, as for the further options.

        Raises:
            ConfigError: it is not such a model, or nothing says which tokenizer is its own.
        """
        if not isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
            raise ConfigError(
                "model.policy: give a path, a PolicyConfig, or a causal language model of transformers without an "
                f"adapter, not {type(model).__name__}: for one, PolicyConfig.from_model(model, lora=LoRAConfig())"
            )
        if tokenizer is None and not model.name_or_path:
            raise ConfigError("model.policy: this model has no name_or_path with a tokenizer: give (model, tokenizer)")
        dtype: Any = str(model.dtype).removeprefix("torch.")
        config = cls(
            model.name_or_path or type(model).__name__, dtype=dtype, lora=lora, reference=reference,
            gradient_checkpointing=gradient_checkpointing, chat_template_kwargs=chat_template_kwargs or {},
            without=without or [], compile=compile,
        )  # fmt: skip
        config.given = model, tokenizer
        return config

    @property
    def is_adapter(self) -> bool:
        """Whether ``path`` is that of an adapter."""
        return self.given is None and (Path(self.path) / "adapter_config.json").is_file()

    @property
    def has_lora(self) -> bool:
        """Whether adapters are trained, fresh or loaded ones."""
        return self.lora is not None or self.is_adapter

    def validate(self) -> None:
        """Find what is wrong with the options before anything is loaded.

        Raises:
            ConfigError: options that exclude each other.
        """
        has_lora, is_adapter = self.has_lora, self.is_adapter
        if is_adapter and self.lora is not None:
            raise ConfigError(
                f"model.policy.lora: {self.path} is already an adapter, whose training continues: omit lora"
            )
        if self.quantization is not None and not has_lora:
            raise ConfigError(
                f"model.policy.quantization: {self.quantization} weights are frozen: add model.policy.lora, whose "
                "adapters are trained over them, or omit quantization"
            )
        if self.quantization is not None and self.init == "random":
            raise ConfigError("model.policy.quantization: it quantises weights while loading them: use init pretrained")
        if self.reference in ("adapter-off", "snapshot") and not has_lora:
            raise ConfigError(f"model.policy.reference: {self.reference} needs LoRA; without it use auto or copy")
        if self.reference == "copy" and has_lora:
            raise ConfigError(
                "model.policy.reference: with LoRA use adapter-off or snapshot, which need no second model"
            )
        for name in self.without:
            if name not in NAMES:
                raise ConfigError(
                    f"model.policy.without: {name} is not a shortcut: choose from {', '.join(sorted(NAMES))}"
                )
        if self.lora is not None and self.lora.r < 1:
            raise ConfigError(f"model.policy.lora.r: must be at least 1, not {self.lora.r}")


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
