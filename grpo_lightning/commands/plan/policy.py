"""The policy of a config, and its critic, without their weights: every tensor has a shape, and none has memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo_lightning.commands.plan.meter import HOST, MemoryMeter
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import InPlaceEmbedding
from grpo_lightning.models import Critic, Policy, PolicyConfig
from grpo_lightning.models.adapters import REFERENCE, VALUE
from grpo_lightning.models.checks import decoder_of
from grpo_lightning.models.loading import load_model
from grpo_lightning.speed.packed import PackedWeights
from grpo_lightning.speed.registry import Shortcuts
from grpo_lightning.speed.vocabulary import InPlaceGradients

TEMPLATE = "{% for message in messages %}{{ message.content + '<end>' }}{% endfor %}"


class WeightlessPolicy(Policy):
    """A policy for rehearsals under a :class:`MemoryMeter`. Of its path it reads the architecture, no weights.

    Args:
        config: as for :class:`Policy`.
        with_reference: as for :class:`Policy`.
        on_cuda: for a GPU, where weights that are kept in host memory do not count.
        make_critic: makes the critic that learns beside it, if one does.
    """

    def __init__(
        self,
        config: PolicyConfig,
        with_reference: bool,
        on_cuda: bool,
        make_critic: Callable[[Policy], WeightlessCritic] | None = None,
    ) -> None:
        with torch.device("meta"):
            super().__init__(config, with_reference=with_reference)
            self.critic = None if make_critic is None else make_critic(self)
        if on_cuda:
            self.shortcuts.rule_out(PackedWeights, "it is for CPUs")
        self.meter = MemoryMeter(self.lm.get_output_embeddings().weight.shape[0], expands_products=not on_cuda)
        self.meter.adopt(self)
        in_place = {id(weight) for weight in self.vocabulary_weights()}
        for name, parameter in self.named_parameters():
            self.meter.assign(parameter, self._part_of(name))
            if parameter.requires_grad and id(parameter) not in in_place:
                parameter.register_post_accumulate_grad_hook(self._sort_gradient)
        self._mark_passes()
        self._keep_pristine_weights(HOST if on_cuda else "merge copy")

    def _load_tokenizer(self, chat_template: str | None) -> PreTrainedTokenizerBase:
        """A vocabulary of two: a rehearsal has lengths and no texts, and needs no download."""
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    def _load_model(self) -> tuple[Any, bool]:
        return _unloaded(self.config, "model.policy.path")

    def _check_model(self) -> None:
        """Nothing to compare without weights."""

    def _choose_shortcuts(self) -> Shortcuts:
        """As the architecture allows: trials need weights."""
        return Shortcuts(self.lm, self._ruled_out(), has_weights=False)

    # -- whose memory it is -----------------------------------------------------------------------------------------

    def _part_of(self, name: str) -> str:
        if name.startswith(("reference.", "critic.")):
            return name.split(".")[0]
        if ".lora_" not in name:
            return "weights"
        _, adapter, *_ = name.split(".lora_")[1].split(".")
        return {REFERENCE: "reference", VALUE: "critic"}.get(adapter, "adapter")

    def vocabulary_weights(self) -> list[Tensor]:
        """Trained weights whose gradients are added in place, which a hook would prevent."""
        if not self.shortcuts.uses(InPlaceGradients):
            return []
        looked_up = {module.weight for module in self.modules() if isinstance(module, InPlaceEmbedding)}
        weights = looked_up | {cast(Tensor, self.lm.get_output_embeddings().weight)}
        return [weight for weight in weights if weight.requires_grad]

    def _sort_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.meter.assign(parameter.grad, "gradients")

    @contextmanager
    def rollout_mode(self) -> Iterator[PreTrainedModel]:
        """What a rollout takes between its passes is the part ``cache``."""
        with super().rollout_mode() as lm, self.meter.counting_as("cache"):
            yield lm

    def _mark_passes(self) -> None:
        """What the language model finds or leaves in its cache is the part ``cache``, the rest ``activations``."""
        parts: list[str] = []

        def before(lm: Any, args: Any, kwargs: Any) -> None:
            parts.append(self.meter.part)
            self.meter.part = "activations"
            for tensor in _tensors_in(kwargs.get("past_key_values")):
                self.meter.assign(tensor, "cache")

        def after(lm: Any, args: Any, kwargs: Any, output: Any) -> None:
            self.meter.part = parts.pop()
            for tensor in _tensors_in(getattr(output, "past_key_values", None)):
                self.meter.assign(tensor, "cache")

        decoder = decoder_of(self.lm)
        decoder.register_forward_pre_hook(before, with_kwargs=True)
        decoder.register_forward_hook(after, with_kwargs=True)

    def _keep_pristine_weights(self, part: str) -> None:
        """Merge the adapter once, so that the copies of the weights it goes into exist, as after a first rollout."""
        with self.meter, self.rollout_mode():
            for tensor in self.merge.pristine.values():
                self.meter.assign(tensor, part)


class WeightlessCritic(Critic):
    """The critic of a weightless policy."""

    def _load_model(self, config: PolicyConfig) -> nn.Module:
        return cast(nn.Module, _unloaded(config, "model.critic_path")[0])


def _unloaded(config: PolicyConfig, key: str) -> tuple[Any, bool]:
    """What :func:`load_model` gives, of the architecture alone.

    Raises:
        ConfigError: the architecture cannot be read, or there is none for it; ``key`` is what names its path.
    """
    config, adapter = replace(config, init="random"), None
    if config.is_adapter:
        from peft import LoraConfig

        adapter = LoraConfig.from_pretrained(config.path)
        config = replace(config, path=str(adapter.base_model_name_or_path))
    try:
        model, _ = load_model(config)
    except ConfigError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise ConfigError(
            f"{key}: the config.json of {config.path} is neither on the disk nor to be had from the hub: name a folder "
            "that holds it, for grpo plan reads no other file of a model"
        ) from error
    if adapter is not None:
        from peft import get_peft_model

        adapter.inference_mode = False
        model = get_peft_model(model, adapter)
    return model, adapter is not None


def _tensors_in(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", []):
        for value in vars(layer).values():
            if isinstance(value, Tensor):
                yield value
