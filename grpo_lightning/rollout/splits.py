"""The prompts of a run's splits: loaded, tokenised, and checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from grpo_lightning.environments.base import Environment
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.dialogue import Dialogue
from grpo_lightning.models.loading import vocabulary_size
from grpo_lightning.models.templates import template_notes
from grpo_lightning.models.tokenizer import tokenizer_of
from grpo_lightning.rollout.checks import check_constraints
from grpo_lightning.rollout.learner import Learner
from grpo_lightning.rollout.prompts import EncodedPrompts
from grpo_lightning.tasks.base import Split
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.tasks.controls import check_sample
from grpo_lightning.verifiers.base import Verifier

if TYPE_CHECKING:
    from grpo_lightning.rollout.datamodule import RolloutDataModule

log = logging.getLogger(__name__)


def load_splits(
    data: RolloutDataModule,
    splits: Sequence[Split],
    learner: Learner,
    known: Mapping[Split, EncodedPrompts],
    ranks: int,
) -> dict[Split, EncodedPrompts]:
    """The splits of a stage, beside those known before; the environment, if any, gets ready.

    Raises:
        ConfigError: see :func:`load_split`; or a verifier can judge no row, or the environment has no room.
    """
    policy, verifiers, loaded = learner.policy_config, list(learner.verifiers.values()), dict(known)
    tokenizer = tokenizer_of(policy, data.task.chat_template)
    vocabulary = vocabulary_size(policy)
    for split in splits:
        if split not in loaded:
            loaded[split] = load_split(data, split, tokenizer, verifiers, vocabulary, ranks)
    start_environment(data, tokenizer, longest_prompt(loaded))
    for note in template_notes(tokenizer, [prompt.messages for split in splits for prompt in loaded[split].prompts]):
        log.info(note)
    for split in splits:
        loaded[split].require_judgeable(split, verifiers)
        for warning in check_sample(data.task, split, loaded[split].prompts, verifiers):
            log.warning(warning)
        check_constraints(data, split, tokenizer, loaded[split].prompts)
    return loaded


def longest_prompt(splits: Mapping[Split, EncodedPrompts]) -> int:
    """Tokens of the longest prompt."""
    return max(len(ids) for split in splits.values() for _, ids in split.rows)


def load_split(
    data: RolloutDataModule,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    verifiers: Sequence[Verifier],
    vocabulary: int | None,
    ranks: int,
) -> EncodedPrompts:
    """Load and tokenise a split. Completions end with the chat template's stop strings, unless the config has some.

    Raises:
        ConfigError: it is empty, has fewer rows than there are devices, no prompt of it fits, or a verifier needs a
            column that it lacks; or a stop string is a special token.
    """
    data.sampling.check_stops(tokenizer, "data.sampling")
    data.val_sampling.check_stops(tokenizer, "data.val_sampling")
    data.sampling, data.val_sampling = (
        sampling.with_stops_of(tokenizer) for sampling in (data.sampling, data.val_sampling)
    )
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
        ConfigError: the longest prompt leaves no room for a reply, or prompts would not stay truncated.
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
    if rewritten and data.max_prompt_tokens is not None and data.overlong == "truncate-left":
        raise ConfigError(
            f"data.overlong: the chat template rewrites earlier turns ({rewritten}), so every turn of data.environment "
            "is rendered anew, and what was truncated is back: set it to drop"
        )
    if rewritten:
        log.info(
            "data.environment: the chat template rewrites earlier turns (%s), so the conversation is rendered anew for "
            "every turn, and turns share only what stays the same",
            rewritten,
        )
    environment.start()
