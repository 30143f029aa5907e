"""Which prompts each step gets: a loader that can be resumed, repeated, and shared among ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.prompts import EncodedPrompts, PromptBatch
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.tasks.shares import apportion
from grpo_lightning.types import Prompt

Draw = Callable[[int, int], list[int]]
"""Returns rows, from the number of steps done and how many are wanted."""


class Part(NamedTuple):
    """A task of a mixture: its name, its rows, its weight."""

    name: str
    rows: list[int]
    weight: float


def parts_of(prompts: Sequence[Prompt], shares: Mapping[str, float]) -> list[Part]:
    """The tasks of a mixture; none for a task that is not one.

    Raises:
        ConfigError: a task has no rows.
    """
    parts = [
        Part(name, [row for row, prompt in enumerate(prompts) if prompt.task == name], weight)
        for name, weight in shares.items()
    ]
    for part in parts:
        if not part.rows:
            raise ConfigError(f"data.task: no training prompt of {part.name} fits data.max_prompt_tokens: raise it")
    return parts


class TrainLoader:
    """The prompts of every training step, from (seed, step) alone; its place goes into checkpoints.

    Tasks of a mixture share the places of a pass by weight; each has its own passes over its own rows.

    The rows are shuffled anew on every pass, the passes are laid end to end, and each step takes the next
    ``prompts_per_step`` of them: nothing needs to divide anything. A step's prompts are dealt out to the ranks in
    turn, so a step means the same on one device and on several.

    Prompts that replace others (``data.resample_silent``) are drawn at random from the rows of the same task that a
    step does not have, from (seed, step) too, one for each place and round.

    It is not a torch ``DataLoader``: workers have nothing to do here, and Lightning would replace the sampler.

    Args:
        prompts: the training split.
        prompts_per_step: prompts of a step, over all ranks.
        recipe: how every step is made; its seed also seeds the shuffling.
        rank: this process.
        ranks: number of processes.
        shares: weights of the tasks of a mixture, by ``Prompt.task``.
        draw: returns different rows for a step, given their number, instead of the next ones of a pass: a curriculum.
        limit: ``trainer.limit_train_batches``: steps of an epoch, or their share of those of a pass.
    """

    def __init__(
        self,
        prompts: EncodedPrompts,
        prompts_per_step: int,
        recipe: Recipe,
        rank: int,
        ranks: int,
        shares: Mapping[str, float] = MappingProxyType({}),
        draw: Draw | None = None,
        limit: int | float = 1.0,
    ) -> None:
        self.prompts = prompts
        self.prompts_per_step = prompts_per_step
        self.recipe = recipe
        self.rank = rank
        self.ranks = ranks
        self.step = 0
        self._epoch_steps = max(1, min(len(self), limit) if isinstance(limit, int) else int(len(self) * limit))
        self._parts = parts_of(prompts.prompts, shares)
        self._draw = draw
        self._drawn: tuple[int, list[int]] | None = None
        self._pass: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        """Steps in one pass, the last of which may straddle two."""
        return -(-len(self.prompts) // self.prompts_per_step)

    def __iter__(self) -> Iterator[PromptBatch]:
        """The steps left of the epoch that :attr:`step`, the number of steps done, is in."""
        for step in range(self.step, (self.step // self._epoch_steps + 1) * self._epoch_steps):
            yield self.batch(step)

    def batch(self, step: int) -> PromptBatch:
        """This rank's prompts of a step, with those that would replace them."""
        recipe, rounds = replace(self.recipe, step=step), self.recipe.resample.max_rounds if self.recipe.resample else 0
        places = range(self.rank, self.prompts_per_step, self.ranks)
        first, *further = self._rows(step, rounds)
        batch = self.prompts.batch({f"train/{step}/{place}": first[place] for place in places}, recipe)
        replacements = [
            self.prompts.batch({f"train/{step}/{place}.{number}": rows[place] for place in places}, recipe)
            for number, rows in enumerate(further, start=1)
        ]
        return replace(batch, replacements=replacements)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps done, and what has been drawn for a step to come, which is sampled ahead."""
        drawn = self._drawn
        return {"step": self.step} | ({"drawn": drawn} if drawn is not None and drawn[0] >= self.step else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self._draw is not None:
            self._drawn = state.get("drawn")

    def _rows(self, step: int, rounds: int) -> list[list[int]]:
        """The rows of a step by place, and of each round those that would replace them."""
        size = self.prompts_per_step
        if self._draw is not None:
            # What is drawn depends on how far training is, and must not change between two requests.
            if self._drawn is None or self._drawn[0] != step:
                self._drawn = step, self._draw(step, size * (1 + rounds))
            rows = list(islice(cycle(self._drawn[1]), size * (1 + rounds)))
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        rows_of_round: list[list[int]] = [[]]
        for place in range(step * size, (step + 1) * size):
            number, within = divmod(place, len(self.prompts))
            if self._pass is None or self._pass[0] != number:
                self._pass = number, self._order(number)
            rows_of_round[0].append(self._pass[1][within])
        if rounds:
            order = self._shuffled(len(self.prompts), "replacements", step)
            tasks = [self.prompts.rows[row][0].task for row in rows_of_round[0]]
            others = {task: self._others(task, order, {*rows_of_round[0]}) for task in tasks}
            rows_of_round += [[next(others[task]) for task in tasks] for _ in range(rounds)]
        return rows_of_round

    def _others(self, task: str, order: list[int], taken: set[int]) -> Iterator[int]:
        """Rows of a task without end, in an order: first those that are not taken."""
        own = [row for row in order if self.prompts.rows[row][0].task == task]
        return chain((row for row in own if row not in taken), cycle(own))

    def _order(self, number: int) -> list[int]:
        """The rows of a pass, as many as there are; those of the tasks of a mixture by weight."""
        order = self._shuffled(len(self.prompts), "pass", number)
        if not self._parts:
            return order
        rows: list[int] = []
        sizes = apportion(len(order), [part.weight for part in self._parts])
        for (name, own, _), size in zip(self._parts, sizes, strict=True):
            for place in range(number * size, (number + 1) * size):
                turn, within = divmod(place, len(own))
                if place == number * size or within == 0:
                    shuffled = self._shuffled(len(own), "pass", name, turn)
                rows.append(own[shuffled[within]])
        return [rows[place] for place in order]

    def _shuffled(self, count: int, *tag: int | str) -> list[int]:
        generator = torch.Generator().manual_seed(row_seed(self.recipe.seed, *tag))
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order


class EvalLoader:
    """Every row exactly once, in order, distributed round-robin over the ranks. Shares are not padded to be even.

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
