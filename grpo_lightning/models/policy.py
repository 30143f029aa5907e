"""The policy: a causal language model with its tokenizer, its LoRA adapter and its frozen reference."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import token_logprobs
from grpo_lightning.models.loading import PolicyConfig, load_model
from grpo_lightning.models.merging import AdapterMerge
from grpo_lightning.models.reference import SNAPSHOT, MovableReference, add_snapshot
from grpo_lightning.models.tokenizer import load_tokenizer, terminators
from grpo_lightning.speed.activations import keeping_less
from grpo_lightning.speed.direct import why_not_direct
from grpo_lightning.speed.packed import can_pack
from grpo_lightning.speed.shared_prompt import PredictingStates, pass_overhead, predicting_states, why_not_shared
from grpo_lightning.types import TokenRows

log = logging.getLogger(__name__)

VALUE = "value"
"""The name of the adapter that belongs to a critic."""


class Policy(MovableReference, nn.Module):
    """A causal language model that can be sampled from, trained, and compared with its frozen reference.

    Args:
        config: how to load it.
        chat_template: a chat template in place of the tokenizer's.
        with_reference: somebody asks for a KL, so a reference is kept unless ``config.reference`` says ``none``.

    Raises:
        ConfigError: the path, or what lies there, cannot be used.
    """

    def __init__(self, config: PolicyConfig, chat_template: str | None = None, with_reference: bool = False) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase = self._load_tokenizer(chat_template)
        self.model, loaded_adapter = self._load_model()
        self.reference_form = self._reference_form(with_reference, loaded_adapter)
        self.reference_model: nn.Module | None = None
        if self.reference_form == "copy":
            self.reference_model = copy.deepcopy(self.lm).requires_grad_(False)
        if self.reference_form == "snapshot":
            add_snapshot(self.model)
        self.terminators = terminators(self.tokenizer, self.lm)
        self.merge = AdapterMerge()
        self._decodes_directly: bool | None = None
        self._check_head()
        if config.gradient_checkpointing:
            # Non-reentrant, so that no input needs to require a gradient: under LoRA none does.
            self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.shares_prompts = self._can_share_prompts()
        self.train()

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def has_lora(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def lm(self) -> PreTrainedModel:
        """The causal LM itself, with the adapter's layers in place where LoRA is on."""
        return cast(PreTrainedModel, self.model.get_base_model() if self.has_lora else self.model)

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def pad_token_id(self) -> int:
        """Any token may stand in a masked place; the tokenizer's own pad reads best in a dump."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What a loss of the policy trains: not the adapter of a critic, though it sits on the same base."""
        values = set(self.value_parameters())
        return [p for p in self.model.parameters() if p.requires_grad and p not in values]

    def value_parameters(self) -> list[nn.Parameter]:
        """Those of the critic's adapter, if there is one."""
        return [p for name, p in self.model.named_parameters() if re.search(rf"\.lora_\w+\.{VALUE}(\.|$)", name)]

    # -- log-probs --------------------------------------------------------------------------------------------------

    def logprobs(
        self,
        tokens: TokenRows,
        temperature: float = 1.0,
        reference: bool = False,
        on_states: Callable[[PredictingStates], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the completion tokens, and the entropy of the distribution each was drawn from.

        Args:
            tokens: right padded rows; what several of them have in common runs once, as ``tokens.sharing`` says.
            temperature: the sampling temperature; 0 (greedy) counts as 1.
            reference: of the frozen reference instead of the policy.
            on_states: is given the hidden states that predict the completion tokens.

        Returns:
            ``logprobs_NT`` and ``entropy_NT``, float32, in nats, 0 behind each row's last token.
        """
        with self._as_reference() if reference else nullcontext(self.lm) as lm:
            with keeping_less(lm):
                states = predicting_states(decoder_of(lm), tokens)
            if on_states is not None:
                on_states(states)
            head = lm.get_output_embeddings()
            logprobs_M, entropy_M = token_logprobs(
                states.hidden_MD,
                head.weight,
                tokens.ids_NL[states.row_M, tokens.prompt_lengths_N[states.row_M] + states.place_M],
                bias_V=getattr(head, "bias", None),
                temperature=temperature or 1.0,
                softcap=softcap_of(lm),
            )
        return states.spread(logprobs_M, tokens), states.spread(entropy_M, tokens)

    @property
    def pass_overhead(self) -> int:
        """See :func:`grpo_lightning.speed.shared_prompt.pass_overhead`."""
        return pass_overhead(decoder_of(self.lm))

    @contextmanager
    def _as_reference(self) -> Iterator[PreTrainedModel]:
        """The reference in the policy's place, for one forward without gradients."""
        if self.reference_form == "none":
            raise RuntimeError("this policy keeps no reference: model.policy.reference is none, or beta is 0")
        with torch.no_grad():
            if self.reference_form == "copy":
                yield cast(PreTrainedModel, self.reference_model)
            elif self.reference_form == "adapter-off":
                with self._staying_trained(), self.model.disable_adapter():
                    yield self.lm
            else:
                with self.with_adapter(SNAPSHOT):
                    yield self.lm

    @contextmanager
    def with_adapter(self, name: str) -> Iterator[PreTrainedModel]:
        """Another adapter in the place of the policy's."""
        with self._staying_trained() as trained:
            self.model.base_model.set_adapter(name, inference_mode=True)
            trained()
            try:
                yield self.lm
            finally:
                self.model.base_model.set_adapter("default")

    @contextmanager
    def _staying_trained(self) -> Iterator[Callable[[], None]]:
        """What is trained stays so, though peft freezes the adapters that it turns off: at the end, and when called."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def restore() -> None:
            for parameter in trained:
                parameter.requires_grad_(True)

        try:
            yield restore
        finally:
            restore()

    # -- rollouts ---------------------------------------------------------------------------------------------------

    @contextmanager
    def rollout_mode(self) -> Iterator[PreTrainedModel]:
        """The language model ready for sampling: no gradients, and the adapter merged into the weights."""
        was_training = self.training
        # Gradient checkpointing, which acts in train mode only, would drop the cache. (Dropout is 0 in any mode.)
        self.eval()
        try:
            with torch.no_grad(), self.merge.applied(self.lm):
                if self._decodes_directly is None:
                    self._decodes_directly = self._can_decode_directly()
                yield self.lm
        finally:
            self.train(was_training)

    @property
    def decodes_directly(self) -> bool:
        """Whether rollouts feed tokens by :class:`grpo_lightning.speed.direct.DirectStep`; known in rollout mode."""
        return bool(self._decodes_directly)

    @property
    def packs_weights(self) -> bool:
        """Whether rollouts multiply by packed copies of the weights; see :mod:`grpo_lightning.speed.packed`."""
        return can_pack(self.lm)

    # -- export -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, merged: bool = False) -> None:
        """Write a normal Hugging Face folder: weights (or the adapter), config and tokenizer.

        Args:
            folder: where to.
            merged: with LoRA, write full weights with the adapter merged in, in place of the adapter alone.
        """
        if self.has_lora and not merged:
            self.model.save_pretrained(folder, selected_adapters=["default"])
        elif self.has_lora:
            with torch.no_grad(), self.merge.applied(self.lm):
                weights = {
                    name.replace(".base_layer", ""): tensor
                    for name, tensor in self.lm.state_dict().items()
                    if ".lora_" not in name
                }
                self.lm.save_pretrained(folder, state_dict=weights)
        else:
            self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # -- construction -----------------------------------------------------------------------------------------------

    def _load_tokenizer(self, chat_template: str | None) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.config.path, self.config.revision, chat_template)

    def _load_model(self) -> tuple[Any, bool]:
        return load_model(self.config)

    def _reference_form(self, wanted: bool, loaded_adapter: bool) -> str:
        if not wanted:
            return "none"
        if self.config.reference != "auto":
            return self.config.reference
        if not self.has_lora:
            return "copy"
        return "snapshot" if loaded_adapter else "adapter-off"

    def add_value_adapter(self) -> None:
        """A second, fresh adapter, trained by a critic on the same base; see :meth:`with_adapter`."""
        self.model.add_adapter(VALUE, self.model.peft_config["default"])
        self.model.base_model.set_adapter("default")
        for parameter in self.value_parameters():
            parameter.requires_grad_(True)

    def _can_share_prompts(self) -> bool:
        """Whether prompts may be run once for their rows: checked against rows that run their own."""
        if self.config.gradient_checkpointing:
            return False  # transformers drops the cache under it
        why_not = why_not_shared(self.lm)
        if why_not is not None:
            log.info("each row runs its own prompt in training: %s", why_not)
        return why_not is None

    def _can_decode_directly(self) -> bool:
        why_not = why_not_direct(self.lm)
        if why_not is not None:
            log.info("rollouts decode by the model's own forward pass: %s", why_not)
        return why_not is None

    def _check_head(self) -> None:
        """Log-probs are computed from hidden states, so a model that reshapes its logits afterwards is refused.

        So is one that keeps no cache to decode from.
        """
        head = self.lm.get_output_embeddings()
        if head is None:
            raise ConfigError(f"model.policy.path: {self.config.path} has no output head, so it is no language model")
        if hasattr(head, "lora_A"):
            raise ConfigError("model.policy.lora.target_modules: adapters on the output head are not supported")
        words = cast(Any, self.lm.get_input_embeddings())
        if hasattr(words, "lora_embedding_A") and words.get_base_layer().weight is head.weight:
            raise ConfigError(
                "model.policy.lora.target_modules: the embedding's weight is the output head's too in "
                f"{self.config.path}, and adapters on that are not supported"
            )
        ids = torch.tensor([[0, 1, 2]], device=self.lm.device) % head.weight.shape[0]
        with torch.no_grad():
            logits = self.lm(input_ids=ids, use_cache=False).logits.float()
            body = decoder_of(self.lm)
            own = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
            cached = body(input_ids=ids, use_cache=True)
            if cap := softcap_of(self.lm):
                own = cap * torch.tanh(own / cap)
        if not torch.allclose(own, logits, rtol=1e-2, atol=1e-2):
            raise ConfigError(
                f"model.policy.path: {self.config.path} ({type(self.lm).__name__}) changes its logits after the output "
                "head in a way that is not supported"
            )
        if not hasattr(cached, "past_key_values"):
            raise ConfigError(
                f"model.policy.path: {self.config.path} ({type(self.lm).__name__}) keeps its states in no cache of "
                "transformers that rollouts can go on from"
            )


def decoder_of(lm: PreTrainedModel) -> nn.Module:
    """The language model without its output head."""
    return cast(nn.Module, lm.get_decoder())


def softcap_of(lm: PreTrainedModel) -> float | None:
    return getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
