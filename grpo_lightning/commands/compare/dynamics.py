"""Combine the curves of several seeds into one band over steps, generated tokens, wall time or cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.runs import Curve, Run
from grpo_lightning.commands.compare.statistics import Array
from grpo_lightning.curves import PANELS as PANEL_TITLES
from grpo_lightning.curves import Curve as DeclaredCurve
from grpo_lightning.curves import of_panel

POINTS = 120
"""Points of the common axis on which curves with different steps are interpolated."""


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a figure.

    Args:
        name: its name in the address of the page.
        label: label of the axis.
        curve: the cumulative curve that gives the positions on the axis; ``None`` for the steps themselves.
        scale: factor from the curve's values to the axis.
    """

    name: str
    label: str
    curve: str | None
    scale: float = 1.0


AXES = (
    Axis("steps", "training steps", None),
    Axis("tokens", "generated tokens (millions)", "total/rollout_tokens", 1e-6),
    Axis("time", "wall time (minutes)", "total/wall_s", 1 / 60),
    Axis("cost", "cost (USD)", "total/usd"),
)


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: the highest of its curves, smoothed if single steps are noisy."""

    title: str
    curves: tuple[DeclaredCurve, ...]

    @property
    def smooth(self) -> bool:
        """Whether to draw a running mean."""
        return all(curve.is_noisy for curve in self.curves)

    @property
    def is_accuracy(self) -> bool:
        """Whether the panel shows the validation accuracy, which is between 0 and 1."""
        return [curve.name for curve in self.curves] == ["val/accuracy"]


PANELS = tuple(Panel(title, of_panel(title)) for title in PANEL_TITLES)


@dataclass(frozen=True)
class Band:
    """A curve of one method, over its seeds.

    Args:
        x: positions on the axis.
        mean: mean over the seeds.
        low: minimum over the seeds.
        high: maximum over the seeds.
        seeds: number of seeds.
    """

    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


Bands = Mapping[Panel, Sequence[Band | None]]
"""The bands of all methods in each panel; ``None`` where a method has no curve."""


def all_bands(methods: Sequence[Method], axis: Axis) -> Bands:
    """Compute the bands in every panel for which one of the methods has a curve."""
    bands = {panel: [band(method.runs, panel, axis) for method in methods] for panel in PANELS}
    return {panel: curves for panel, curves in bands.items() if any(curve is not None for curve in curves)}


def final_level(method: Method, panel: Panel, axis: Axis) -> float | None:
    """Return the final accuracy of a method, for an axis over which it has no curve, such as SFT over tokens."""
    final = [value for run in method.runs if (value := run.last("val/accuracy")) is not None]
    return float(np.mean(final)) if panel.is_accuracy and axis.curve is not None and final else None


def band(runs: Sequence[Run], panel: Panel, axis: Axis) -> Band | None:
    """Compute mean, minimum and maximum over the seeds, interpolated on the part of the axis that all of them cover.

    Returns ``None`` if no run has both the curve and the axis. Smoothed curves are running means over 1/40 of the
    steps.
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
    # Seeds with the same steps keep their points; otherwise they are interpolated on an even grid.
    same = all(len(x) == len(shared) and np.array_equal(x, shared) for x, _ in lines)
    x = shared if same else np.linspace(start, end, POINTS)
    y_SX = np.stack([np.interp(x, *line) for line in lines])
    return Band(x, y_SX.mean(axis=0), y_SX.min(axis=0), y_SX.max(axis=0), len(lines))


def progress(run: Run, axis: Axis, steps: Array) -> Array | None:
    """Return the positions on the axis of a run after the given numbers of steps; ``None`` without the axis' curve."""
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
    curves = run.declared(panel.curves)
    if len(curves) < 2:
        return curves[0] if curves else None
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    highest = np.max([np.interp(steps, curve.steps, curve.values) for curve in curves], axis=0)
    return Curve(steps, np.asarray(highest))


def _running_mean(values: Array, width: int) -> Array:
    """Compute a centred running mean, over fewer values at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    low = np.maximum(0, positions - width // 2)
    high = np.minimum(len(values), positions + (width + 1) // 2)
    return np.asarray((sums[high] - sums[low]) / (high - low))
