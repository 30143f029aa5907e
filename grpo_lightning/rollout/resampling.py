"""Dynamic sampling: groups without a signal are replaced before the update (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Attempt

Keep = Literal["fill", "signal"]


@dataclass
class ResampleConfig:
    """What replaces a group whose rewards are all equal, from which a relative advantage learns nothing.

    Args:
        max_rounds: how often the group of one place is replaced at most.
        keep: what becomes of a place that is still without a signal after the last round: ``fill`` keeps its last group
            in what the loss is divided by, so that a step weighs its completions as without resampling; ``signal``
            divides by the completions of groups with a signal alone.
    """

    max_rounds: int = 3
    keep: Keep = "fill"

    def validate(self, group_size: int) -> None:
        """Check the options before anything is sampled.

        Raises:
            ConfigError: one sentence with the first key that is out of its range.
        """
        if self.max_rounds < 1:
            raise ConfigError(f"data.resample_silent.max_rounds: must be at least 1, not {self.max_rounds}")
        if self.keep not in ("fill", "signal"):
            raise ConfigError(f"data.resample_silent.keep: must be fill or signal, not {self.keep!r}")
        if group_size < 2:
            raise ConfigError(
                f"data.resample_silent: no group of data.group_size={group_size} has a signal: raise it to at least 2"
            )


def is_silent(group: Sequence[Attempt]) -> bool:
    """Whether no two rewards of a group differ: all are equal, or at most one completion has one."""
    return len({attempt.reward for attempt in group if not math.isnan(attempt.reward)}) < 2


class Places:
    """The groups of a step, one per place, while silent ones are replaced.

    Which prompt replaces that of a place depends on the place and the round alone, and whether it is replaced on the
    rewards of its own group: the result does not depend on which completions are short, or on other ranks.

    Args:
        rows: the rows of each place's first group.
        max_rounds: replacements per place.
    """

    def __init__(self, rows: Sequence[range], max_rounds: int) -> None:
        self.rows = list(rows)
        """Rows of the present group of each place."""
        self.max_rounds = max_rounds
        self.replaced: list[int] = []
        """Rows of the groups that were replaced."""
        self._open = dict.fromkeys(range(len(self.rows)), 0)  # rounds made of the places that may still be replaced

    @property
    def settled(self) -> bool:
        """Whether no group will be replaced any more."""
        return not self._open

    @property
    def kept(self) -> list[int]:
        """Rows of the present groups, by place."""
        return [row for rows in self.rows for row in rows]

    def silent(self, attempts: Mapping[int, Attempt]) -> Iterator[tuple[int, int]]:
        """The places whose group is to be replaced, each with its round, counted from 1.

        Args:
            attempts: what has been judged, by row. A group with attempts that are missing is queried again later.
        """
        for place, rounds in list(self._open.items()):
            rows = self.rows[place]
            if any(row not in attempts for row in rows):
                continue
            del self._open[place]
            if is_silent([attempts[row] for row in rows]):
                yield place, rounds + 1

    def replace(self, place: int, round_: int, rows: range) -> None:
        """Replace a silent group with another one, which is still to be sampled."""
        self.replaced += self.rows[place]
        self.rows[place] = rows
        if round_ < self.max_rounds:
            self._open[place] = round_
