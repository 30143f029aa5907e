"""What each method paid for a point of accuracy, or for reward: money, and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_lightning.commands.compare.blocks import Block, Heading, Table
from grpo_lightning.commands.compare.cells import over_seeds
from grpo_lightning.commands.compare.measure import Measure
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.runs import Run

SPENT = (("total/usd", "USD", 1.0), ("total/rollout_tokens", "million tokens generated", 1e-6),
         ("total/train_tokens", "million tokens trained", 1e-6))  # fmt: skip
"""What is spent: its curve, its unit, and the factor to that unit."""


def cost(methods: Sequence[Method], measure: Measure) -> list[Block]:
    """Return the table of what was gained per unit spent; nothing without a run that was validated twice."""
    rows = []
    for method in methods:
        gains = [gain(run, measure) for run in method.runs]
        if all(value is None for value in gains):
            continue
        spent = [_per(method.runs, measure, curve, scale) for curve, _, scale in SPENT]
        usd = over_seeds([run.last("total/usd") for run in method.runs], lambda value: f"{value:.2f} USD", np.mean)
        rows.append([method.name, over_seeds(gains, measure.show_gain, np.mean), usd, *spent])
    gained = measure.unit
    header = ["method", f"{gained} gained", "cost", *(f"{gained} per {unit}" for _, unit, _ in SPENT)]
    caption = (
        f"{gained.capitalize()} gained: validation {measure.name}, the last minus the first"
        f"{', in percentage points' if gained == 'points' else ''}. All columns are means over the seeds. The cost is "
        "that of the callback `Cost`, without the warm start."
    )
    return [Heading("Cost"), Table(header, rows, caption)] if rows else []


def gain(run: Run, measure: Measure) -> float | None:
    """Return the last validation's value minus the first's; ``None`` with fewer than two."""
    curve = run.curves.get(measure.curve)
    return curve.last - float(curve.values[0]) if curve is not None and len(curve.values) > 1 else None


def _per(runs: Sequence[Run], measure: Measure, curve: str, scale: float) -> str:
    shares: list[float | None] = []
    for run in runs:
        gained, spent = gain(run, measure), run.last(curve)
        shares.append(gained / (spent * scale) if gained is not None and spent else None)
    return over_seeds(shares, measure.show_gain, np.mean)
