"""How long a row may be for a model: later positions have no embedding, or change the meaning of the others."""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedModel

from grpo_lightning.errors import ConfigError

log = logging.getLogger(__name__)

_FIX = "lower data.max_prompt_tokens or data.sampling.max_new_tokens"


def check_length(lm: PreTrainedModel, tokens: int, row: str = "a prompt and its completion", fix: str = _FIX) -> None:
    """Check that rows of ``tokens`` tokens suit a model. Warn of rotary positions beyond those it was trained for.

    Args:
        row: what such a row holds.
        fix: how to get shorter ones.

    Raises:
        ConfigError: there is no embedding for that many positions, or frequencies would change with the longest row of
            a batch (dynamic NTK), so that sampling and training saw different policies.
    """
    config = lm.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or tokens <= limit:
        return
    rows = f"{row} have up to {tokens} tokens"
    if _has_learned_positions(lm, limit):
        raise ConfigError(f"data: {rows}, but {type(lm).__name__} has {limit} positions: {fix}")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "dynamic" in (rope.get("rope_type"), rope.get("type")):
        raise ConfigError(
            f"data: {rows}, and beyond {limit} a model with dynamic rotary positions (rope_type: dynamic) gives every "
            f"token another meaning: {fix}"
        )
    log.warning("%s, more than the %d positions that %s was made for: %s", rows, limit, type(lm).__name__, fix)


def _has_learned_positions(lm: PreTrainedModel, limit: int) -> bool:
    """Whether there is an embedding of positions; some have a few extra rows."""
    words = lm.get_input_embeddings()
    tables = [module for module in lm.modules() if isinstance(module, nn.Embedding) and module is not words]
    return any(limit <= table.num_embeddings <= limit + 8 for table in tables)
