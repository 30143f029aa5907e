"""The policy: a causal language model with its tokenizer, its LoRA adapter and its frozen reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.constraints.grammar import Grammars
from grpo_lightning.functional import TokenSets, adding_in_place, token_logprobs
from grpo_lightning.models.adapters import VALUE, active_adapter, adapter_parameters, adapters_off, note_base
from grpo_lightning.models.checks import causal_lm_of, check_model, output_head
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.loading import load_model
from grpo_lightning.models.merging import AdapterMerge, merged_weights
from grpo_lightning.models.quantised import is_packed, stored_quantization, unquantised
from grpo_lightning.models.reference import make_reference
from grpo_lightning.models.tokenizer import terminators, tokenizer_of
from grpo_lightning.models.weightless import is_weightless
from grpo_lightning.speed.caches import has_plain_cache
from grpo_lightning.speed.compiled import NOT_ASKED_FOR, CompiledLayers, uninstall
from grpo_lightning.speed.passes import pass_overhead
from grpo_lightning.speed.recompute import RecomputedActivations, recompute_in_backward
from grpo_lightning.speed.registry import SWITCHED_OFF, Shortcuts
from grpo_lightning.speed.shared_prompt import PredictingStates, SharedPrompts, predicting_states
from grpo_lightning.speed.vocabulary import InPlaceGradients, KeptProbabilities
from grpo_lightning.types import TokenRows

log = logging.getLogger(__name__)


class Policy(nn.Module):
    """A causal language model that can be sampled from, trained, and compared with its frozen reference.

    Args:
        config: how to load it.
        chat_template: replaces the tokenizer's chat template: a Jinja text or a name such as ``plain``.
        with_reference: the loss has a KL, so a reference is kept unless ``config.reference`` says ``none``.

    Raises:
        ConfigError: the path, or what it holds, cannot be used.
    """

    def __init__(self, config: PolicyConfig, chat_template: str | None = None, with_reference: bool = False) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase = tokenizer_of(config, chat_template)
        self.model, loaded_adapter = load_model(config)
        self.has_lora = hasattr(self.model, "peft_config")
        self.eval()
        if not is_weightless():
            check_model(self.lm, config.path)
        pad, vocabulary = self.tokenizer.pad_token_id, self.lm.get_output_embeddings().weight.shape[0]
        # The token in masked places. Any of the embedding would do; the tokenizer's own pad reads best in a dump.
        self.pad_token_id: int = 0 if pad is None or pad >= vocabulary else int(pad)
        with adapters_off(self.model):
            self.shortcuts = self._choose_shortcuts()
        form = config.reference if with_reference else "none"
        self.reference = make_reference(self.model, form, loaded_adapter)
        self.terminators = terminators(self.tokenizer, self.lm)
        self.merge = AdapterMerge()
        if config.gradient_checkpointing:
            # Non-reentrant, so that no input needs to require a gradient: under LoRA none does.
            self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.train()

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def lm(self) -> PreTrainedModel:
        """The causal LM itself, with the adapter's layers in place where LoRA is on."""
        return causal_lm_of(self.model)

    @property
    def is_quantised(self) -> bool:
        """Whether layers of the frozen base are in 4 bits."""
        return any(is_packed(module) for module in self.lm.modules())

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What a loss of the policy trains: not the adapter of a critic, though it sits on the same base."""
        values = set(self.value_parameters())
        return [p for p in self.model.parameters() if p.requires_grad and p not in values]

    def value_parameters(self) -> list[nn.Parameter]:
        """The parameters of the critic's adapter, if there is one."""
        return adapter_parameters(self.model, VALUE)

    @contextmanager
    def with_adapter(self, name: str) -> Iterator[PreTrainedModel]:
        """The causal LM with another adapter instead of the policy's."""
        with active_adapter(self.model, name):
            yield self.lm

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
            tokens: right padded rows; what several of them have in common runs once, as ``tokens.sharing`` says, and
                the distributions are over ``tokens.allowed``.
            temperature: the sampling temperature; 0 (greedy) counts as 1.
            reference: use the frozen reference instead of the policy.
            on_states: is called with the hidden states that predict the completion tokens.

        Returns:
            ``logprobs_NT`` and ``entropy_NT``, float32, in nats, 0 after each row's last token.
        """
        with self.reference.model() if reference else nullcontext(self.lm) as lm:
            with self.recomputing(lm):
                states = predicting_states(lm.get_decoder(), tokens)
            if on_states is not None:
                on_states(states)
            head = output_head(lm, temperature)
            allowed = None
            if tokens.allowed is not None:
                bits_SW, set_NT = tokens.allowed
                allowed = TokenSets(bits_SW, set_NT[states.row_M, states.place_M])
            logprobs_M, entropy_M = token_logprobs(
                states.hidden_MD,
                head.weight_VD,
                states.targets(tokens),
                bias_V=head.bias_V,
                temperature=head.temperature,
                softcap=head.softcap,
                keep_probabilities=self.shortcuts.uses(KeptProbabilities),
                allowed=allowed,
            )
        return states.spread(logprobs_M, tokens), states.spread(entropy_M, tokens)

    # -- shortcuts --------------------------------------------------------------------------------------------------

    @property
    def pass_overhead(self) -> int:
        """See :func:`grpo_lightning.speed.passes.pass_overhead`."""
        return pass_overhead(self.lm.get_decoder())

    @property
    def shares_prompts(self) -> bool:
        """Whether what several rows have in common may run once."""
        return self.shortcuts.uses(SharedPrompts)

    def recomputing(self, lm: nn.Module) -> AbstractContextManager[None]:
        """Forward passes of ``lm`` inside recompute cheap activations in their backward pass, if that is used."""
        return recompute_in_backward(lm) if self.shortcuts.uses(RecomputedActivations) else nullcontext()

    def adding_gradients(self) -> AbstractContextManager[None]:
        """Backward passes inside end in ``weight.grad``, so gradients may be added there, if that is used."""
        return adding_in_place() if self.shortcuts.uses(InPlaceGradients) else nullcontext()

    # -- reference --------------------------------------------------------------------------------------------------

    def sync_reference(self, alpha: float = 1.0) -> None:
        """Move the reference to the policy; see :meth:`grpo_lightning.models.reference.Reference.move`."""
        self.reference = self.reference.move(alpha)

    def reference_state(self) -> dict[str, Tensor]:
        """See :meth:`grpo_lightning.models.reference.Reference.state`."""
        return self.reference.state()

    def load_reference_state(self, state: dict[str, Tensor]) -> None:
        """See :meth:`grpo_lightning.models.reference.Reference.loaded`."""
        self.reference = self.reference.loaded(state)

    # -- rollouts ---------------------------------------------------------------------------------------------------

    @cached_property
    def has_plain_cache(self) -> bool:
        """See :func:`grpo_lightning.speed.caches.has_plain_cache`."""
        return has_plain_cache(self.lm)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over the policy's tokens, for constrained rollouts.

        Raises:
            ConfigError: llguidance is not installed, or cannot read the tokenizer.
        """
        vocabulary = self.lm.get_output_embeddings().weight.shape[0]
        return Grammars(self.tokenizer, vocabulary, self.terminators)

    @contextmanager
    def rollout_mode(self) -> Iterator[PreTrainedModel]:
        """The language model ready for sampling: no gradients, and the adapter merged into the weights."""
        was_training = self.training
        # Gradient checkpointing, which acts in train mode only, would drop the cache. (Dropout is 0 in any mode.)
        self.eval()
        try:
            with torch.no_grad(), self.merge.applied(self.lm) if self.has_lora else nullcontext():
                self.shortcuts.check_decoding(self.lm)
                yield self.lm
        finally:
            self.train(was_training)

    # -- export -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, merged: bool = False) -> None:
        """Write a normal Hugging Face folder: weights (or the adapter), config and tokenizer.

        Args:
            folder: where to.
            merged: with LoRA, write the full weights with the adapter merged in, instead of the adapter alone. 4-bit
                weights are unpacked to the policy's dtype.
        """
        if self.has_lora and not merged:
            self.model.save_pretrained(folder, selected_adapters=["default"])
            note_base(Path(folder), stored_quantization(self.lm.config))
        elif self.has_lora:
            with torch.no_grad(), self.merge.applied(self.lm):
                unquantised(self.lm).save_pretrained(folder, state_dict=merged_weights(self.lm))
        else:
            self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def weights_note(self, merged: bool) -> str:
        """What a reader must know of the weights that :meth:`save_pretrained` writes of a 4-bit base; else nothing."""
        if not self.is_quantised:
            return ""
        if merged:
            return f"unpacked from 4 bits to {self.config.dtype}, with the adapter merged in; not quantised"
        return "trained over the base in 4 bits (bitsandbytes): load the base so, or the adapter fits it less well"

    # -- construction -----------------------------------------------------------------------------------------------

    def _choose_shortcuts(self) -> Shortcuts:
        if is_weightless():
            return Shortcuts(self.lm, self._ruled_out(), has_weights=False)
        uninstall(self.lm)
        shortcuts = Shortcuts(self.lm, self._ruled_out())
        for line in shortcuts.lines():
            log.info(line)
        return shortcuts

    def _ruled_out(self) -> dict[str, str]:
        """Reasons by name for shortcuts that the config excludes."""
        reasons = dict.fromkeys(self.config.without, SWITCHED_OFF)
        if not self.config.compile:
            reasons.setdefault(CompiledLayers.name, NOT_ASKED_FOR)
        if self.config.gradient_checkpointing:
            reasons.setdefault(SharedPrompts.name, "gradient checkpointing drops the cache that rows continue from")
            reasons.setdefault(CompiledLayers.name, "gradient checkpointing runs the layers in its own way")
        return reasons
