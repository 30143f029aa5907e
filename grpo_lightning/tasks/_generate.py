"""What tasks with generated rows share: drawing distinct rows, and keeping the splits apart."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from grpo_lightning.tasks.base import Split
from grpo_lightning.types import ConfigError

Row = TypeVar("Row")

# Of every ten rows eight may serve for training, one for validation and one for testing.
_SHARES: tuple[Split, ...] = ("val", "test", *(("train",) * 8))
_PATIENCE = 20_000


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
