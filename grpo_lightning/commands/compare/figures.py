"""The pictures, as SVG and PNG on a transparent ground: legible on light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_lightning.commands.compare.dynamics import PANELS, Axis, Panel, band
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.statistics import Interval
from grpo_lightning.errors import ConfigError

# Okabe and Ito's palette, which colour-blind people can tell apart, less black and yellow: one of them is lost on a
# dark ground, the other on a light one. A second round through it is dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#7a7a7a"
"""Of text and axes: about 4.3 : 1 against white, and against a page of GitHub's dark theme."""

COLUMNS = 2


def pyplot() -> Any:
    """matplotlib, drawing into memory.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("matplotlib draws the figures: pip install 'grpo-lightning[report]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 11,
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
            # Names of methods are the user's: a dollar sign in them is one.
            "text.parse_math": False,
            "grid.color": INK, "savefig.transparent": True, "legend.frameon": False, "axes.titlecolor": INK,
        }
    )  # fmt: skip
    return plt


def style(index: int) -> dict[str, Any]:
    """How the ``index``-th method is drawn, in every picture alike."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def draw_dynamics(methods: Sequence[Method], axis: Axis, out: Path) -> list[Panel]:
    """Draw every panel that a method has a curve for; the panels drawn, none if there is nothing to draw."""
    bands = {panel: [band(method.runs, panel, axis) for method in methods] for panel in PANELS}
    panels = [panel for panel in PANELS if any(one is not None for one in bands[panel])]
    if not panels:
        return []
    plt = pyplot()
    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(9.2, 2.75 * rows), squeeze=False, layout="constrained")
    handles: dict[str, Any] = {}
    for place, panel in zip(grid.flat, panels, strict=False):
        for index, (method, one) in enumerate(zip(methods, bands[panel], strict=True)):
            drawn = style(index)
            marker = {"marker": drawn.pop("marker"), "markersize": 3.5}
            if one is None:
                _draw_level(place, panel, axis, method, drawn, handles)
                continue
            points = marker if len(one.x) <= 40 else {}
            (handles[method.name],) = place.plot(one.x, one.mean, linewidth=1.6, **drawn, **points)
            if one.seeds > 1:
                place.fill_between(one.x, one.low, one.high, color=drawn["color"], alpha=0.18, linewidth=0)
        place.set_title(panel.title, loc="left")
        place.set_xlabel(axis.label)
        if panel.is_accuracy:
            place.set_ylim(-0.02, 1.02)
    for place in grid.flat[len(panels) :]:
        place.set_visible(False)
    _legend(figure, handles, methods)
    _save(figure, out, axis.name)
    plt.close(figure)
    return panels


def _draw_level(
    place: Any, panel: Panel, axis: Axis, method: Method, drawn: dict[str, Any], handles: dict[str, Any]
) -> None:
    """Where a method cannot be drawn over an axis (SFT generates nothing to learn from), what it reached."""
    reached = [value for run in method.runs if (value := run.last("val/accuracy")) is not None]
    if panel.is_accuracy and axis.curve is not None and reached:
        line = place.axhline(float(np.mean(reached)), linewidth=1.8, **drawn | {"linestyle": (0, (1, 2))})
        handles[method.name] = line


def _legend(figure: Any, handles: dict[str, Any], methods: Sequence[Method]) -> None:
    names = [method.name for method in methods if method.name in handles]
    columns = 2 if max(map(len, names), default=0) > 22 else 4
    # matplotlib leaves out what has a label with a leading underscore: the names are put in behind its back.
    numbers = [str(number) for number in range(len(names))]
    legend = figure.legend([handles[name] for name in names], numbers, loc="outside upper left", ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def draw_accuracy(methods: Sequence[Method], intervals: Sequence[Interval | None], label: str, out: Path) -> None:
    """One line a method: the interval, the mean, and every seed."""
    plt = pyplot()
    figure, place = plt.subplots(figsize=(9.2, 0.9 + 0.42 * len(methods)), layout="constrained")
    for index, (method, interval) in enumerate(zip(methods, intervals, strict=True)):
        if interval is None:
            continue
        drawn = style(index)
        place.plot([interval.low, interval.high], [index, index], color=drawn["color"], linewidth=2.5, alpha=0.6)
        place.plot([interval.mean], [index], marker=drawn["marker"], color=drawn["color"], markersize=8)
        seeds = [float(np.mean(list(run.test.correct.values()))) for run in method.runs if run.test is not None]
        place.plot(seeds, [index] * len(seeds), "|", color=drawn["color"], markersize=11, markeredgewidth=1.5)
    place.set_yticks(range(len(methods)), [method.name for method in methods])
    place.set_ylim(len(methods) - 0.5, -0.5)
    place.set_xlabel(label)
    place.grid(axis="y", visible=False)
    _save(figure, out, "accuracy")
    plt.close(figure)


def _save(figure: Any, out: Path, name: str) -> None:
    import matplotlib

    # Of equal data the files are equal: no date in them, and ids that depend on the figure alone.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    # Hundredths of a point are enough for a path, and half of the file.
    rounded = re.sub(r' d="[^"]*"', lambda path: _hundredths(path[0]), drawn.getvalue())
    (out / f"{name}.svg").write_text(rounded)
    figure.savefig(out / f"{name}.png", dpi=150)


def _hundredths(path: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path)


def inline_svg(file: Path, title: str) -> str:
    """The ``<svg>`` element of a figure's file for use within HTML; text and axes take the colour of the page's."""
    text = file.read_text()
    svg = text[text.index("<svg") :]
    start, end = svg.find("<metadata>"), svg.find("</metadata>")
    if start >= 0:
        svg = svg[:start] + svg[end + len("</metadata>") :]
    opening, _, rest = svg.partition(">")
    return f'{opening} role="img" aria-label="{title}">{rest}'.replace(INK, "currentColor")
