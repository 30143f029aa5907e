"""The base of tasks with generated rows: common options, distinct rows, and disjoint splits."""

from __future__ import annotations

import random
import zlib
from abc import abstractmethod
from collections.abc import Container, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import Split, Task, with_examples
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
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models.
        prompt_template: the text of the user turn, in which ``{prompt}`` is the row's text. Default: the
            task's own.
        shots: number of worked examples before every prompt, as turns of the chat. They are the same for all rows, and
            in no split.

    Raises:
        ConfigError: a size is below 1, ``shots`` is negative, or the template does not fit the task.
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
        prompt_template: str | None = None,
        shots: int = 0,
    ) -> None:
        super().__init__(system_prompt, chat_template, prompt_template)
        self.seed = seed
        self.shots = shots
        require(shots >= 0, "shots", shots, "must be at least 0")
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        for split, size in self.sizes.items():
            require(size >= 1, f"{split}_size", size, "must be at least 1")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        generator = self._generator("shots")
        # Examples are drawn as train rows are, and taken out of these.
        drawn = self._rows(generator, "train", "shots", self.shots)
        examples = {self._content(row): self._prompt(row, generator) for row in drawn}
        generator = self._generator(split)
        rows = self._rows(generator, split, f"{split}_size", self.sizes[split], examples)
        return with_examples([self._prompt(row, generator) for row in rows], list(examples.values()))

    def _generator(self, purpose: str) -> random.Random:
        # `random` hashes a string seed in the same way on every machine and in every process.
        return random.Random(f"{self.name}/{self.seed}/{purpose}")

    def _rows(
        self, generator: random.Random, split: Split, key: str, size: int, taken: Container[str] = ()
    ) -> Iterator[Row]:
        """Yield ``size`` rows of a split with distinct contents.

        Args:
            generator: the random numbers to draw rows with.
            split: the split to which the rows belong.
            key: the option that says how many, for the error message.
            size: number of rows.
            taken: contents of rows to skip.

        Raises:
            ConfigError: the split has fewer distinct rows.
        """
        seen: set[str] = set()
        misses = 0
        while len(seen) < size:
            row = self._draw(generator)
            content = self._content(row)
            if content not in seen and content not in taken and split_of(content) == split:
                seen.add(content)
                misses = 0
                yield row
            elif (misses := misses + 1) == _MAX_MISSES:
                raise ConfigError(
                    f"data.task.init_args.{key}: {size} is too many; at this difficulty the {split} split has only "
                    f"about {len(seen)} distinct rows; lower it or raise {self.more}"
                )

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


def require(holds: bool, key: str, value: int, rule: str) -> None:
    """Raise a ConfigError about the option ``key`` unless its rule holds."""
    if not holds:
        raise ConfigError(f"data.task.init_args.{key}: {value} {rule}")
