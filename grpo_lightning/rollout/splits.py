"""The prompts of a run's splits: loaded, tokenised, and checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from grpo_lightning.environments.base import Environment
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.dialogue import Dialogue
from grpo_lightning.rollout.loader import EncodedPrompts
from grpo_lightning.tasks.base import Split
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.verifiers.base import Verifier

if TYPE_CHECKING:
    from grpo_lightning.rollout.datamodule import RolloutDataModule

log = logging.getLogger(__name__)


def load_split(
    data: RolloutDataModule,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    verifiers: Sequence[Verifier],
    vocabulary: int | None,
    ranks: int,
) -> EncodedPrompts:
    """Load and tokenise a split.

    Raises:
        ConfigError: it is empty, has fewer rows than there are devices, no prompt of it fits, or a verifier needs a
            column that it lacks.
    """
    rows = data.task.prompts(split)
    if not rows:
        raise ConfigError(f"data.task: the {split} split of {type(data.task).__name__} has no rows")
    rows = with_columns(rows, verifiers)
    tools = None if data.environment is None else dialogue_of(data.environment, tokenizer).schemas
    encoded = EncodedPrompts(rows, tokenizer, data.max_prompt_tokens, data.overlong, vocabulary, tools or None)
    if split != "train" and len(encoded) < ranks:
        raise ConfigError(
            f"data.task: the {split} split has {len(encoded)} rows, fewer than the devices ({ranks}): add rows, or use "
            "fewer devices"
        )
    if encoded.overlong:
        done = "dropped" if data.overlong == "drop" else "truncated on the left"
        log.warning(
            "%d of %d %s prompts are longer than max_prompt_tokens=%s and were %s",
            encoded.overlong, len(rows), split, data.max_prompt_tokens, done,
        )  # fmt: skip
    return encoded


def dialogue_of(environment: Environment, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
    """How conversations with an environment are written."""
    return Dialogue(tokenizer, environment.tools, environment.tool_format)


def start_environment(data: RolloutDataModule, tokenizer: PreTrainedTokenizerBase, longest_prompt: int) -> None:
    """Check that episodes can be had, and let the environment get ready.

    Raises:
        ConfigError: the longest prompt leaves no room for a reply.
    """
    environment = data.environment
    if environment is None:
        return
    cap = max(data.sampling.cap, data.val_sampling.cap)
    if longest_prompt + cap > environment.max_tokens:
        raise ConfigError(
            f"data.environment.init_args.max_tokens: the longest prompt has {longest_prompt} tokens, and a reply up to "
            f"{cap}, more than {environment.max_tokens} together: raise it, or lower data.sampling.max_new_tokens"
        )
    rewritten = dialogue_of(environment, tokenizer).rewrites
    if rewritten:
        log.info(
            "data.environment: the chat template rewrites earlier turns (%s), so the conversation is rendered anew for "
            "every turn, and turns share only what stays the same",
            rewritten,
        )
    environment.start()
