"""What tasks with generated rows share: their common options, distinct rows, and splits that stay apart."""

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

# Of every ten rows eight may serve for training, one for validation and one for testing.
_SHARES: tuple[Split, ...] = ("val", "test", *(("train",) * 8))
_PATIENCE = 20_000


class Generated(Task, Generic[Row]):
    """A task whose rows are drawn. No two are of the same content, and no content is in two splits.

    Args:
        seed: draws the rows. One seed gives the same rows everywhere.
        train_size: rows of the train split.
        val_size: rows of the validation split.
        test_size: rows of the test split.
        system_prompt: put before every prompt as the system message.
        chat_template: a Jinja chat template in place of the tokenizer's own.

    Raises:
        ConfigError: a size is below 1.
    """

    name: ClassVar[str]
    """Part of the seed, so that no two tasks draw alike."""

    more: ClassVar[str]
    """The options that make more rows possible, for the message that there are too few."""

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
        # A text as the seed is hashed by `random` in the same way on every machine and in every process.
        generator = random.Random(f"{self.name}/{self.seed}/{split}")
        rows = distinct(partial(self._draw, generator), self._content, split, self.sizes[split], self.more)
        return [self._prompt(row, generator) for row in rows]

    def gold_completion(self, prompt: Prompt) -> str:
        assert prompt.solution is not None
        return prompt.solution

    @abstractmethod
    def _draw(self, generator: random.Random) -> Row:
        """A random row."""

    @abstractmethod
    def _content(self, row: Row) -> str:
        """What makes a row differ from another."""

    @abstractmethod
    def _prompt(self, row: Row, generator: random.Random) -> Prompt:
        """A row in words."""


def split_of(content: str) -> Split:
    """Where a row belongs. It follows from the content alone, so splits stay apart under every seed."""
    return _SHARES[zlib.crc32(content.encode()) % len(_SHARES)]


def distinct(
    draw: Callable[[], Row], content: Callable[[Row], str], split: Split, size: int, more: str
) -> Iterator[Row]:
    """Yield ``size`` rows of a split, no two of the same content.

    Args:
        draw: makes a random row.
        content: what makes a row differ from another.
        split: whose rows are wanted.
        size: how many.
        more: for the error message, the options that make more rows possible.

    Raises:
        ConfigError: there are not that many.
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
        elif (misses := misses + 1) == _PATIENCE:
            raise ConfigError(
                f"data.task.init_args.{split}_size: {size} is too many, only about {len(seen)} different rows of this "
                f"difficulty are in the {split} split; ask for fewer or raise {more}"
            )


def require(holds: bool, key: str, value: int, rule: str) -> None:
    """Raise a ConfigError about an option unless its rule holds."""
    if not holds:
        raise ConfigError(f"data.task.init_args.{key}: {value} {rule}")
