"""What a run has cost so far: time and tokens, from the start of training and over every resumption of it."""

from __future__ import annotations

import os
import time


class Totals:
    """Counts that a checkpoint keeps.

    - ``wall_s``: seconds since the start of training, validation included, interruptions not.
    - ``cpu_s``: CPU seconds, user and system, of this process in that time, and of the processes that it started and
      that have ended.
    - ``rollout_tokens``: completion tokens sampled for training, further attempts included, over all ranks.
    - ``train_tokens``: completion tokens that had a gradient, once for each optimizer step that learned from them,
      over all ranks.
    """

    def __init__(self) -> None:
        self._before = {"wall_s": 0.0, "cpu_s": 0.0}
        self._started: tuple[float, float] | None = None
        self.rollout_tokens = 0
        self.train_tokens = 0

    def start(self) -> None:
        """Training starts, or continues."""
        self._started = _clocks()

    def stop(self) -> None:
        """Training ends; a later run of the same module continues counting."""
        state = self.state()
        self._before, self._started = {name: state[name] for name in self._before}, None

    def state(self) -> dict[str, float]:
        """All counts as of now, as plain numbers."""
        wall, cpu = (0.0, 0.0)
        if self._started is not None:
            wall, cpu = (now - then for now, then in zip(_clocks(), self._started, strict=True))
        return {
            "wall_s": self._before["wall_s"] + wall,
            "cpu_s": self._before["cpu_s"] + cpu,
            "rollout_tokens": self.rollout_tokens,
            "train_tokens": self.train_tokens,
        }

    def after(self, step: dict[str, float]) -> dict[str, float]:
        """Add the tokens of a step, from what it logs, and return all counts by the names of their curves."""
        if self._started is None:
            self.start()  # late: a subclass's on_train_start does not call its parent's
        self.rollout_tokens += round(step["total/rollout_tokens"])
        self.train_tokens += round(step["total/train_tokens"])
        return {f"total/{name}": value for name, value in self.state().items()}

    def load(self, state: dict[str, float]) -> None:
        """Continue from an earlier :meth:`state`."""
        self._before = {"wall_s": state["wall_s"], "cpu_s": state["cpu_s"]}
        self.rollout_tokens = int(state["rollout_tokens"])
        self.train_tokens = int(state["train_tokens"])


def _clocks() -> tuple[float, float]:
    """Seconds of the wall clock and of the CPU, from some start each."""
    children = os.times()
    return time.perf_counter(), time.process_time() + children.children_user + children.children_system
