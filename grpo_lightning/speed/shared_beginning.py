"""Prompts that begin alike, as with a system turn or worked examples: the beginning is prefilled once per rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from grpo_lightning.speed.base import Shortcut
from grpo_lightning.speed.caches import cache_kinds


class Beginning(NamedTuple):
    """The tokens that all prompts begin with, and the cache of one row of them."""

    tokens: tuple[int, ...]
    cache: Cache

    def fork(self, lengths_B: Tensor) -> Cache:
        """A cache of ``B`` rows with the first ``lengths_B`` tokens each, aligned at their ends.

        The columns before them hold other tokens, for the mask to hide.
        """
        columns = int(lengths_B.max())
        place_BL = torch.arange(columns, device=lengths_B.device) - (columns - lengths_B)[:, None]
        place_BL = place_BL.clamp(min=0)
        forked = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            keys, values = (states[0][:, place_BL].transpose(0, 1) for states in (layer.keys, layer.values))
            forked.update(keys, values, index)
        return forked


def common_beginning(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts begin with. At least the last token of each prompt is not among them."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    pairs = zip(first[:limit], last[:limit], strict=True)
    return first[: next((place for place, (one, other) in enumerate(pairs) if one != other), limit)]


class SharedBeginnings(Shortcut):
    """What all prompts of a rollout begin with is prefilled once. The plain way runs every prompt as a whole."""

    name = "shared_beginnings"
    runs = "grpo_lightning.speed.shared_beginning:Beginning.fork"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        if not cache_kinds(lm) <= {DynamicLayer}:
            return f"{type(lm).__name__} has layers other than full attention, whose caches cannot be cut"
        return None
