"""The base of tasks with generated rows: common options, distinct rows, and disjoint splits."""

from __future__ import annotations

import random
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Generic, TypeVar

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.types import Prompt

Row = TypeVar("Row")

# Out of ten rows, eight are for training, one for validation and one for testing.
_SHARES: tuple[Split, ...] = ("val", "test", *(("train",) * 8))
# Draws in a row without a new row, after which the split counts as exhausted.
_MAX_MISSES = 20_000


class Generated(Task, Generic[Row]):
    """A task whose rows are generated at random. Their contents are distinct, within and across splits.

    Args:
        seed: the random seed. The same seed gives the same rows on every machine.
        train_size: number of rows in the train split.
        val_size: number of rows in the validation split.
        test_size: number of rows in the test split.
        system_prompt: the system message put before every prompt.
        chat_template: a Jinja chat template to use instead of the tokenizer's.

    Raises:
        ConfigError: a size is below 1.
    """

    name: ClassVar[str]
    """Part of the seed, so that different tasks draw different numbers."""

    more: ClassVar[str]
    """The options that allow more rows, for the error message when there are too few."""

    def __init__(
        self,
        seed: int = 0,
        train_size: int = 8000,
        val_size: int = 200,
        test_size: int = 500,
        system_prompt: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(system_prompt, chat_template)
        self.seed = seed
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        for split, size in self.sizes.items():
            require(size >= 1, f"{split}_size", size, "must be at least 1")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        # `random` hashes a string seed in the same way on every machine and in every process.
        generator = random.Random(f"{self.name}/{self.seed}/{split}")
        rows = distinct(partial(self._draw, generator), self._content, split, self.sizes[split], self.more)
        return [self._prompt(row, generator) for row in rows]

    def gold_completion(self, prompt: Prompt) -> str:
        assert prompt.solution is not None
        return prompt.solution

    @abstractmethod
    def _draw(self, generator: random.Random) -> Row:
        """Draw a random row."""

    @abstractmethod
    def _content(self, row: Row) -> str:
        """Return a key that is equal for rows with the same content."""

    @abstractmethod
    def _prompt(self, row: Row, generator: random.Random) -> Prompt:
        """Put a row into words."""


def split_of(content: str) -> Split:
    """Return the split of a row. It depends on the content only, so splits are disjoint under every seed."""
    return _SHARES[zlib.crc32(content.encode()) % len(_SHARES)]


def distinct(
    draw: Callable[[], Row], content: Callable[[Row], str], split: Split, size: int, more: str
) -> Iterator[Row]:
    """Yield ``size`` rows of a split with distinct contents.

    Args:
        draw: a function that draws a random row.
        content: a function that returns the key by which rows are compared.
        split: the split to which the rows belong.
        size: number of rows.
        more: the options that allow more rows, for the error message.

    Raises:
        ConfigError: the split has fewer distinct rows.
    """
    seen: set[str] = set()
    misses = 0
    while len(seen) < size:
        row = draw()
        key = content(row)
        if key not in seen and split_of(key) == split:
            seen.add(key)
            misses = 0
            yield row
        elif (misses := misses + 1) == _MAX_MISSES:
            raise ConfigError(
                f"data.task.init_args.{split}_size: {size} is too many; at this difficulty the {split} split has only "
                f"about {len(seen)} distinct rows; lower it or raise {more}"
            )


def require(holds: bool, key: str, value: int, rule: str) -> None:
    """Raise a ConfigError about the option ``key`` unless its rule holds."""
    if not holds:
        raise ConfigError(f"data.task.init_args.{key}: {value} {rule}")
