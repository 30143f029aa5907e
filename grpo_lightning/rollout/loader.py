"""Which prompts each step gets: a loader that can be resumed, repeated, and shared among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import PreTrainedTokenizerBase

from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.types import ConfigError, Prompt


@dataclass(frozen=True)
class PromptBatch:
    """Prompts on their way to the engine.

    Args:
        prompts: the rows.
        prompt_ids: their token ids.
        keys: what each prompt's random numbers are seeded from: its place in the run, the same on any rank.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    keys: list[str]

    def to(self, device: torch.device) -> PromptBatch:
        """Nothing to move: Lightning asks every batch."""
        return self


class EncodedPrompts(Dataset[PromptBatch]):
    """Tokenised prompts; indexed by a list of ``(key, row)`` pairs, it gives a whole batch.

    Args:
        prompts: the rows of a split.
        tokenizer: renders and encodes them.
        max_tokens: the limit on a prompt's length; ``None`` for none.
        overlong: what becomes of a longer one: ``drop`` it, or ``truncate-left``, which keeps its last tokens.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int | None = None,
        overlong: Literal["drop", "truncate-left"] = "drop",
    ) -> None:
        encoded = [(prompt, encode_prompt(tokenizer, prompt.messages)) for prompt in prompts]
        long = [len(ids) for _, ids in encoded if max_tokens is not None and len(ids) > max_tokens]
        self.overlong = len(long)
        if long and overlong == "drop":
            encoded = [(prompt, ids) for prompt, ids in encoded if len(ids) <= (max_tokens or 0)]
            if not encoded:
                raise ConfigError(
                    f"data.max_prompt_tokens: all {len(long)} prompts are longer than {max_tokens} tokens (the shortest "
                    f"has {min(long)}): raise it, or set data.overlong to truncate-left"
                )
        self.rows = [(prompt, ids[-max_tokens:] if max_tokens else ids) for prompt, ids in encoded]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[tuple[str, int]]) -> PromptBatch:
        rows = [self.rows[row] for _, row in places]
        return PromptBatch([prompt for prompt, _ in rows], [ids for _, ids in rows], [key for key, _ in places])


class StepSampler(DistributedSampler[Any]):
    """The prompts of every training step, from (seed, step) alone.

    The rows are shuffled anew on every pass, the passes are laid end to end, and each step takes the next
    ``prompts_per_step`` of them: nothing needs to divide anything. A step's prompts are dealt out to the ranks in
    turn, so a step means the same on one device and on several. It is a ``DistributedSampler`` only so that
    Lightning leaves it in place.

    Args:
        rows: number of rows.
        prompts_per_step: of all ranks together.
        seed: of the shuffling.
        rank: this process.
        ranks: number of processes.
    """

    def __init__(self, rows: int, prompts_per_step: int, seed: int, rank: int, ranks: int) -> None:
        self.rows = rows
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.rank = rank
        self.num_replicas = ranks
        self.step = 0

    def __len__(self) -> int:
        """Steps in one pass, the last of which may straddle two."""
        return -(-self.rows // self.prompts_per_step)

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        """The steps left of the pass that ``self.step`` is in."""
        for step in range(self.step, (self.step // len(self) + 1) * len(self)):
            yield [
                (f"train/{step}/{place}", self._row(step * self.prompts_per_step + place))
                for place in range(self.rank, self.prompts_per_step, self.num_replicas)
            ]

    def set_epoch(self, epoch: int) -> None:
        """Lightning's call; the step says it all."""

    def _row(self, place: int) -> int:
        generator = torch.Generator().manual_seed(self.seed + place // self.rows)
        if getattr(self, "_shuffled_for", None) != place // self.rows:
            self._shuffled_for = place // self.rows
            self._order = torch.randperm(self.rows, generator=generator).tolist()
        return int(self._order[place % self.rows])


class EvalSampler(DistributedSampler[Any]):
    """Every row once, in order, dealt out to the ranks in turn; no row twice, as padding to even shares would have it."""

    def __init__(self, split: str, rows: int, batch_size: int, rank: int, ranks: int) -> None:
        self.split = split
        self.mine = range(rank, rows, ranks)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        for start in range(0, len(self.mine), self.batch_size):
            yield [(f"{self.split}/{row}", row) for row in self.mine[start : start + self.batch_size]]

    def set_epoch(self, epoch: int) -> None:
        """Lightning's call; the order is fixed."""


class PromptLoader(DataLoader[PromptBatch]):
    """A loader whose sampler makes the batches, and whose place in the training set goes into checkpoints."""

    def __init__(self, prompts: EncodedPrompts, sampler: StepSampler | EvalSampler) -> None:
        # With a generator of its own, starting an iteration draws nothing from the global random state.
        super().__init__(prompts, batch_size=None, sampler=sampler, generator=torch.Generator())

    def state_dict(self) -> dict[str, int]:
        return {"step": self.sampler.step} if isinstance(self.sampler, StepSampler) else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if isinstance(self.sampler, StepSampler):
            self.sampler.step = state["step"]
