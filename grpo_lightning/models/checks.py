"""Whether a loaded model can be a policy; its parts."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import OutputHead
from grpo_lightning.models.adapters import adapters_off
from grpo_lightning.models.weightless import is_weightless
from grpo_lightning.speed.shared_prompt import SharedPrompts

log = logging.getLogger(__name__)


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, whether or not LoRA is around it."""
    return cast(PreTrainedModel, cast(Any, model).get_base_model() if hasattr(model, "peft_config") else model)


def output_head(lm: PreTrainedModel, temperature: float = 1.0) -> OutputHead:
    """What turns the hidden states of a model into logits over the sampling temperature; 0 (greedy) counts as 1."""
    head, config = lm.get_output_embeddings(), lm.config.get_text_config()
    # Granite divides its logits, after a softcap; Cohere multiplies them.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(head.weight, getattr(head, "bias", None), (temperature or 1.0) / scale, softcap)


def can_share_prompts(model: nn.Module, name: str) -> bool:
    """Whether what several rows have in common may run once in passes of a model beside the policy, which may have
    another architecture. It is tried; if not, the log says why.

    Args:
        model: the model, with an adapter or without.
        name: what it is, in the log.
    """
    if is_weightless():
        return True
    with adapters_off(model):
        reason = SharedPrompts().why_not(causal_lm_of(model))
    if reason is not None:
        log.info(f"{name}: shortcut {SharedPrompts.name}: not used: {reason}")
    return reason is None


def check_model(lm: PreTrainedModel, path: str, key: str = "model.policy.path") -> None:
    """Refuse a model that changes its logits after the output head, or keeps no cache to decode from.

    Log-probs are computed from hidden states, by the head alone.

    Args:
        lm: the model.
        path: where it comes from.
        key: names the path in an error.

    Raises:
        ConfigError: the model at ``path`` cannot be used.
    """
    head = lm.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{key}: {path} has no output head, so it is not a language model")
    if hasattr(head, "lora_A"):
        raise ConfigError("model.policy.lora.target_modules: adapters on the output head are not supported")
    words = cast(Any, lm.get_input_embeddings())
    if hasattr(words, "lora_embedding_A") and words.get_base_layer().weight is head.weight:
        raise ConfigError(
            "model.policy.lora.target_modules: the embedding's weight is the output head's too in "
            f"{path}, and adapters on that are not supported"
        )
    ids = torch.tensor([[0, 1, 2]], device=lm.device) % head.weight.shape[0]
    with torch.no_grad():
        logits = lm(input_ids=ids, use_cache=False).logits.float()
        body = cast(nn.Module, lm.get_decoder())
        own = output_head(lm).logits(head(body(input_ids=ids, use_cache=False).last_hidden_state).float())
        cached = body(input_ids=ids, use_cache=True)
    if not torch.allclose(own, logits, rtol=1e-2, atol=1e-2):
        raise ConfigError(
            f"{key}: {path} ({type(lm).__name__}) changes its logits after the output "
            "head in a way that is not supported"
        )
    if not hasattr(cached, "past_key_values"):
        raise ConfigError(
            f"{key}: {path} ({type(lm).__name__}) has no transformers cache that rollouts can continue from"
        )
