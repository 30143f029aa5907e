"""Prompts on their way to the engine: tokenised splits, and the batches that are taken from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import encode_prompt, prompt_end
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.types import Prompt, Turn
from grpo_lightning.verifiers.base import Verifier


@dataclass(frozen=True)
class PromptBatch:
    """Prompts on their way to the engine.

    Args:
        prompts: the rows.
        prompt_ids: their token ids.
        keys: what each prompt's random numbers are seeded from: its place in the run, the same on any rank.
        recipe: how attempts at them are made.
        replacements: prompts that would replace these, place by place, for each round of ``data.resample_silent``.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    keys: list[str]
    recipe: Recipe
    replacements: Sequence[PromptBatch] = ()

    def turns(self, place: int, tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
        """The first attempts at one of the prompts."""
        prompt, ids, key = self.prompts[place], self.prompt_ids[place], self.keys[place]
        end = prompt_end(tokenizer, ids)
        return [Turn(prompt, ids, end, f"{key}/{member}", key) for member in range(self.recipe.group_size)]

    def to(self, device: torch.device) -> PromptBatch:
        """Nothing to move: Lightning asks every batch."""
        return self


class EncodedPrompts:
    """The tokenised prompts of a split.

    Args:
        prompts: the rows of a split.
        tokenizer: renders and encodes them.
        max_tokens: the limit on a prompt's length; ``None`` for none.
        overlong: what becomes of a longer one: ``drop`` it, or ``truncate-left``, which keeps its last tokens.
        vocabulary: rows of the model's embedding; ``None`` if unknown.
        tools: JSON schemas of the tools that the chat template shows.

    Raises:
        ConfigError: all prompts are too long, or one has a token that the model has no embedding for.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int | None = None,
        overlong: Literal["drop", "truncate-left"] = "drop",
        vocabulary: int | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> None:
        encoded = [(prompt, encode_prompt(tokenizer, prompt.messages, tools)) for prompt in prompts]
        if vocabulary is not None:
            _check_tokens(encoded, tokenizer, vocabulary)
        long = [len(ids) for _, ids in encoded if max_tokens is not None and len(ids) > max_tokens]
        self.overlong = len(long)
        if long and overlong == "drop":
            encoded = [(prompt, ids) for prompt, ids in encoded if len(ids) <= (max_tokens or 0)]
            if not encoded:
                raise ConfigError(
                    f"data.max_prompt_tokens: all {len(long)} prompts are longer than {max_tokens} tokens (the "
                    f"shortest has {min(long)}): raise it, or set data.overlong to truncate-left"
                )
        self.rows = [(prompt, ids[-max_tokens:] if max_tokens else ids) for prompt, ids in encoded]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that fit, in order."""
        return [prompt for prompt, _ in self.rows]

    def require_judgeable(self, split: str, verifiers: Sequence[Verifier]) -> None:
        """Check that each verifier can judge some row. A single row that lacks something is counted when it is judged.

        Raises:
            ConfigError: all rows of the split lack what a verifier needs.
        """
        for verifier in verifiers:
            lacks = None
            for prompt, _ in self.rows:
                try:
                    verifier.require(prompt)
                    break
                except ValueError as error:
                    lacks = error
            else:
                raise ConfigError(
                    f"model.verifiers: {type(verifier).__name__} cannot judge any row of the {split} split: {lacks}; "
                    "take another verifier, or give the rows what it needs (by answer_column and metadata_columns of "
                    "Tabular)"
                )

    def batch(self, rows: Mapping[str, int], recipe: Recipe) -> PromptBatch:
        """The named rows, as ``{key: row}``."""
        chosen = [self.rows[row] for row in rows.values()]
        return PromptBatch([prompt for prompt, _ in chosen], [ids for _, ids in chosen], list(rows), recipe)


def _check_tokens(
    encoded: Sequence[tuple[Prompt, list[int]]], tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    for prompt, ids in encoded:
        last = max(ids, default=0)
        if last >= vocabulary:
            raise ConfigError(
                f"data.task: the prompt {prompt.messages[-1]['content'][:80]!r} has the token "
                f"{tokenizer.decode([last])!r} ({last}), but the embedding has {vocabulary} rows: remove it from the "
                "prompts and the chat template, or enlarge the model with resize_token_embeddings and save it"
            )
