"""What a policy is loaded from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.adapters import LoRAConfig
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
            and let ``trainer.precision: bf16-mixed`` do the arithmetic, or small updates round away. ``float16``
            needs LoRA to train.
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
            model: a causal language model of transformers, without an adapter. Without ``lora``, parameters that do not
                require a gradient stay frozen, unless none does.
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
        for name in ("r", "alpha"):
            if self.lora is not None and getattr(self.lora, name) < 1:
                raise ConfigError(f"model.policy.lora.{name}: must be at least 1, not {getattr(self.lora, name)}")

    def check_trainable(self) -> None:
        """Check, before a model loads, that its weights can be trained.

        Raises:
            ConfigError: they would be trained in float16.
        """
        if self.dtype == "float16" and not self.has_lora:
            raise ConfigError(
                "model.policy.dtype: float16 weights cannot be trained, as AdamW's eps and small updates are 0 in it: "
                "use float32 with trainer.precision bf16-mixed, or add model.policy.lora"
            )
