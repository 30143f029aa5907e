"""Curves of several seeds as one band, over steps, generated tokens or wall time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_lightning.commands.compare.runs import Curve, Run
from grpo_lightning.commands.compare.statistics import Array
from grpo_lightning.curves import PANELS as PANEL_TITLES
from grpo_lightning.curves import Curve as DeclaredCurve
from grpo_lightning.curves import of_panel

POINTS = 120


@dataclass(frozen=True)
class Axis:
    """What curves are drawn over.

    Args:
        name: of the file.
        label: of the axis.
        curve: that counts it up over the run; ``None`` for the steps themselves.
        scale: of its values in the picture.
    """

    name: str
    label: str
    curve: str | None
    scale: float = 1.0


AXES = (
    Axis("steps", "training steps", None),
    Axis("tokens", "generated tokens (millions)", "total/rollout_tokens", 1e-6),
    Axis("time", "wall time (minutes)", "total/wall_s", 1 / 60),
)


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: the highest of its curves, smoothed where single steps are noisy."""

    title: str
    curves: tuple[DeclaredCurve, ...]

    @property
    def smooth(self) -> bool:
        return all(curve.is_noisy for curve in self.curves)

    @property
    def is_accuracy(self) -> bool:
        """Whether it shows the validation accuracy, whose scale is known."""
        return [curve.name for curve in self.curves] == ["val/accuracy"]


PANELS = tuple(Panel(title, of_panel(title)) for title in PANEL_TITLES)


@dataclass(frozen=True)
class Band:
    """A curve of one method.

    Args:
        x: where the seeds were compared.
        mean: over the seeds.
        low: of the seeds.
        high: of the seeds.
        seeds: how many there are.
    """

    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


def band(runs: Sequence[Run], panel: Panel, axis: Axis) -> Band | None:
    """Mean, minimum and maximum over the seeds, interpolated on the stretch of the axis that all of them have.

    ``None`` where no run has the curve or the axis. Smoothed curves are running means over a 40th of the steps.
    """
    lines = [line for run in runs if (line := _line(run, panel, axis)) is not None]
    if not lines:
        return None
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if len(lines) == 1:
        x, y = lines[0]
        return Band(x, y, y, y, 1)
    if not end > start:
        return None
    shared = lines[0][0]
    # Seeds validated at the same steps keep their points; else they meet on an even grid.
    same = all(len(x) == len(shared) and np.array_equal(x, shared) for x, _ in lines)
    x = shared if same else np.linspace(start, end, POINTS)
    y_SX = np.stack([np.interp(x, *line) for line in lines])
    return Band(x, y_SX.mean(axis=0), y_SX.min(axis=0), y_SX.max(axis=0), len(lines))


def progress(run: Run, axis: Axis, steps: Array) -> Array | None:
    """Where on the axis a run was when it had made so many steps."""
    if axis.curve is None:
        return steps * axis.scale
    if axis.curve not in run.curves:
        return None
    counter = run.curves[axis.curve]
    known, counted = np.concatenate([[0.0], counter.steps]), np.concatenate([[0.0], counter.values])
    return np.asarray(np.interp(steps, known, counted)) * axis.scale


def _line(run: Run, panel: Panel, axis: Axis) -> tuple[Array, Array] | None:
    curve = _curve(run, panel)
    if curve is None:
        return None
    x = progress(run, axis, curve.steps)
    if x is None or not x[-1] > 0:
        return None
    y = _running_mean(curve.values, max(1, len(curve.values) // 40)) if panel.smooth else curve.values
    return x, y


def _curve(run: Run, panel: Panel) -> Curve | None:
    found = run.declared(panel.curves)
    if len(found) < 2:
        return found[0] if found else None
    steps = np.unique(np.concatenate([curve.steps for curve in found]))
    highest = np.max([np.interp(steps, curve.steps, curve.values) for curve in found], axis=0)
    return Curve(steps, np.asarray(highest))


def _running_mean(values: Array, width: int) -> Array:
    """Centred, over fewer values at the two ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low = np.maximum(0, places - width // 2)
    high = np.minimum(len(values), places + (width + 1) // 2)
    return np.asarray((sums[high] - sums[low]) / (high - low))
