"""What is declared of a logged curve."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

Unit = Literal[
    "", "reward", "share", "nats", "nats/token", "tokens", "tokens/s", "s", "GiB", "steps", "attempts", "turns", "USD"
]


class Reduction(Enum):
    """How one logged value is made of many."""

    MEAN = "mean over the step, its micro-batches and all ranks"
    ROOT = "square root of such a mean"
    MAX = "largest value of the step, over all ranks"
    TOTAL = "sum since the run began, over all ranks"
    STATE = "value at the end of the step"
    SPLIT = "mean over the split, over all ranks"
    PEAK = "highest value since the last one logged, on the fullest device"


@dataclass(frozen=True)
class Curve:
    """One logged curve, or a family of curves whose names share a pattern.

    Args:
        name: as logged; of a family, with ``<k>`` for a number, or ``<verifier>``, ``<phase>`` for any name.
        unit: unit of its values; empty for plain numbers.
        reduction: how one value is made of many.
        chart: its chart in TensorBoard, a title of :data:`grpo_lightning.curves.CHARTS`; ``None``: none.
        meaning: what it measures, in one line.
        healthy: what it looks like in a run that learns.
        otherwise: what a bad value means, and what to change.
        bar: its label in the progress bar; ``None``: not shown there.
        panel: its panel in the report of ``grpo compare``, a title of :data:`grpo_lightning.curves.PANELS`; a panel of
            several curves shows the highest of them. ``None``: none.
        final: whether its last value is shown next to the hyper-parameters in TensorBoard.
    """

    name: str
    unit: Unit
    reduction: Reduction
    chart: str | None
    meaning: str
    healthy: str = ""
    otherwise: str = ""
    bar: str | None = None
    panel: str | None = None
    final: bool = False

    @property
    def is_family(self) -> bool:
        """Whether the name is a pattern."""
        return "<" in self.name

    @property
    def is_noisy(self) -> bool:
        """Whether each value comes from the few rollouts of a single step, so that pictures smooth it."""
        return self.reduction in (Reduction.MEAN, Reduction.ROOT, Reduction.MAX)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names of this curve, or family, as a whole; a family also matches declared names."""
        return re.compile(re.sub(r"<(\w+)>", lambda place: r"\d+" if place[1] == "k" else ".+", re.escape(self.name)))
