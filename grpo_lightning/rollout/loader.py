"""Which prompts each step gets: a loader that can be resumed, repeated, and shared among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.base import Verifier


@dataclass(frozen=True)
class PromptBatch:
    """Prompts on their way to the engine.

    Args:
        prompts: the rows.
        prompt_ids: their token ids.
        keys: what each prompt's random numbers are seeded from: its place in the run, the same on any rank.
        recipe: how attempts at them are made.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    keys: list[str]
    recipe: Recipe

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


class TrainLoader:
    """The prompts of every training step, from (seed, step) alone; its place goes into checkpoints.

    The rows are shuffled anew on every pass, the passes are laid end to end, and each step takes the next
    ``prompts_per_step`` of them: nothing needs to divide anything. A step's prompts are dealt out to the ranks in
    turn, so a step means the same on one device and on several.

    It is not a torch ``DataLoader``: workers have nothing to do here, and Lightning would replace the sampler.

    Args:
        prompts: the training split.
        prompts_per_step: prompts of a step, over all ranks.
        recipe: how every step is made; its seed also seeds the shuffling.
        rank: this process.
        ranks: number of processes.
    """

    def __init__(self, prompts: EncodedPrompts, prompts_per_step: int, recipe: Recipe, rank: int, ranks: int) -> None:
        self.prompts = prompts
        self.prompts_per_step = prompts_per_step
        self.recipe = recipe
        self.rank = rank
        self.ranks = ranks
        self.step = 0
        self._pass: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        """Steps in one pass, the last of which may straddle two."""
        return -(-len(self.prompts) // self.prompts_per_step)

    def __iter__(self) -> Iterator[PromptBatch]:
        """The steps left of the pass that :attr:`step`, the number of steps done, is in."""
        for step in range(self.step, (self.step // len(self) + 1) * len(self)):
            yield self.batch(step)

    def batch(self, step: int) -> PromptBatch:
        """This rank's prompts of a step."""
        places = range(self.rank, self.prompts_per_step, self.ranks)
        rows = {f"train/{step}/{place}": self._row(step * self.prompts_per_step + place) for place in places}
        return self.prompts.batch(rows, replace(self.recipe, step=step))

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _row(self, place: int) -> int:
        number, within = divmod(place, len(self.prompts))
        if self._pass is None or self._pass[0] != number:
            generator = torch.Generator().manual_seed(row_seed(self.recipe.seed, "pass", number))
            self._pass = number, torch.randperm(len(self.prompts), generator=generator).tolist()
        return self._pass[1][within]


class EvalLoader:
    """Every row exactly once, in order, dealt out to the ranks in turn. Shares are not padded to be even.

    Args:
        prompts: the prompts of a split.
        split: the name of the split, the first part of keys.
        recipe: how every batch is made.
        batch_size: prompts per batch.
        rank: this process.
        ranks: number of processes.
    """

    def __init__(
        self, prompts: EncodedPrompts, split: str, recipe: Recipe, batch_size: int, rank: int, ranks: int
    ) -> None:
        self.prompts = prompts
        self.split = split
        self.recipe = recipe
        self.batch_size = batch_size
        self.mine = range(rank, len(prompts), ranks)
        self.ends_early = False
        """Set while it is iterated: no further batch follows."""

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        for start in range(0, len(self.mine), self.batch_size):
            if self.ends_early:
                return
            rows = self.mine[start : start + self.batch_size]
            yield self.prompts.batch({f"{self.split}/{row}": row for row in rows}, self.recipe)
