"""Further attempts that join the rows that still decode; and the caches that allow it."""

from __future__ import annotations

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from grpo_lightning.speed.base import Shortcut


def cache_kinds(lm: PreTrainedModel) -> set[type]:
    """The types of the layers of a model's cache."""
    return {type(layer) for layer in DynamicCache(config=lm.config).layers}


def has_plain_cache(lm: PreTrainedModel) -> bool:
    """Whether all layers are full attention or convolutions, which keep all tokens, or the last few."""
    return cache_kinds(lm) <= {DynamicLayer, LinearAttentionLayer}


class EarlyJoins(Shortcut):
    """Further attempts decode beside those that still run. The plain way begins them when the others have ended."""

    name = "early_joins"
    runs = "grpo_lightning.rollout.engines.decoder:Decoder.join"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        if not has_plain_cache(lm):
            return f"{type(lm).__name__} has caches of several kinds, which cannot be widened"
        return None
