"""Optimizer steps whose gradient is not finite: they are skipped and counted, and stop the run if they continue."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.errors import RunError
from grpo_lightning.rollout.records import record
from grpo_lightning.types import Attempt

log = logging.getLogger(__name__)


class NonFiniteError(RunError):
    """The loss or the gradient was not finite in the updates of two consecutive training steps."""


class SkippedSteps:
    """Counts skipped optimizer steps. One bad rollout may spoil every update made on it."""

    def __init__(self) -> None:
        self.count = 0
        self._last: int | None = None

    def step_succeeded(self) -> None:
        """An optimizer step was made."""
        self._last = None

    def skip(self, norm: float, step: int, attempts: Sequence[Attempt], file: Path) -> None:
        """An optimizer step was skipped.

        Args:
            norm: the norm of the gradient.
            step: number of the training step that the optimizer step belongs to.
            attempts: what was learned from, written down for inspection; may be empty.
            file: where to write them; the number of skipped steps and a suffix are added to its name.

        Raises:
            NonFiniteError: this happened in the training step before, too, so it is not an accident.
        """
        self.count += 1
        where = ""
        if attempts:
            file = file.with_name(f"{file.name}-{self.count}.jsonl")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(record(attempt)) + "\n" for attempt in attempts))
            where = f" (its rollouts are in {file})"
        log.warning("the gradient's norm is %s: the step is skipped%s", norm, where)
        if self._last not in (None, step):
            raise NonFiniteError(
                f"the gradient was not finite in two consecutive training steps{where}: lower the learning rate, or "
                "look for a completion with an extreme log-prob there"
            )
        self._last = step
