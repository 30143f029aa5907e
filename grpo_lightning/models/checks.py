"""Whether a loaded model can be a policy; its parts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from grpo_lightning.errors import ConfigError


def decoder_of(lm: PreTrainedModel) -> nn.Module:
    """The language model without its output head."""
    return cast(nn.Module, lm.get_decoder())


def softcap_of(lm: PreTrainedModel) -> float | None:
    """The final softcap of the logits, or ``None``."""
    return getattr(lm.config.get_text_config(), "final_logit_softcapping", None)


def logit_scale_of(lm: PreTrainedModel) -> float:
    """What the logits are multiplied by, after the softcap: 1 for most models.

    Granite divides by ``logits_scaling``, Cohere multiplies by ``logit_scale``.
    """
    config = lm.config.get_text_config()
    return float(getattr(config, "logit_scale", 1.0) or 1.0) / float(getattr(config, "logits_scaling", 1.0) or 1.0)


def check_model(lm: PreTrainedModel, path: str) -> None:
    """Refuse a model that changes its logits after the output head, or keeps no cache to decode from.

    Log-probs are computed from hidden states, by the head alone.

    Raises:
        ConfigError: the model at ``path`` cannot be used.
    """
    head = lm.get_output_embeddings()
    if head is None:
        raise ConfigError(f"model.policy.path: {path} has no output head, so it is not a language model")
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
        body = decoder_of(lm)
        own = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
        cached = body(input_ids=ids, use_cache=True)
        if cap := softcap_of(lm):
            own = cap * torch.tanh(own / cap)
        own *= logit_scale_of(lm)
    if not torch.allclose(own, logits, rtol=1e-2, atol=1e-2):
        raise ConfigError(
            f"model.policy.path: {path} ({type(lm).__name__}) changes its logits after the output "
            "head in a way that is not supported"
        )
    if not hasattr(cached, "past_key_values"):
        raise ConfigError(
            f"model.policy.path: {path} ({type(lm).__name__}) has no transformers cache that rollouts can continue from"
        )
