"""The figures, as SVG and PNG on a transparent background, legible on light and dark pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_lightning.commands.compare.dynamics import Bands
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.errors import ConfigError
from grpo_lightning.intervals import Interval

# Okabe and Ito's palette, which colour-blind people can distinguish, without black (invisible on a dark background) and
# yellow (invisible on a light one). The second cycle through it is dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#7a7a7a"
"""Colour of text and axes: a contrast of about 4.3 : 1 to white, and to GitHub's dark theme."""

COLUMNS = 2


def pyplot() -> Any:
    """Import ``matplotlib.pyplot`` with a backend that draws into memory.

    Raises:
        ConfigError: matplotlib is not installed.
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
            # Method names come from the user, and a dollar sign in them is literal.
            "text.parse_math": False,
            "grid.color": INK, "savefig.transparent": True, "legend.frameon": False, "axes.titlecolor": INK,
        }
    )  # fmt: skip
    return plt


def style(index: int) -> dict[str, Any]:
    """Return the style of the ``index``-th method, the same in every figure."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def draw_dynamics(methods: Sequence[Method], bands: Bands, label: str, out: Path) -> None:
    """Draw the panels, with ``label`` as the title of their horizontal axes."""
    plt = pyplot()
    rows = math.ceil(len(bands) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(9.2, 2.75 * rows), squeeze=False, layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (panel, curves) in zip(grid.flat, bands.items(), strict=False):
        for index, (method, curve) in enumerate(zip(methods, curves, strict=True)):
            if curve is None:
                continue
            line_style = style(index)
            marker = {"marker": line_style.pop("marker"), "markersize": 3.5}
            points = marker if len(curve.x) <= 40 else {}
            (handles[method.name],) = axes.plot(curve.x, curve.mean, linewidth=1.6, **line_style, **points)
            if curve.seeds > 1:
                axes.fill_between(curve.x, curve.low, curve.high, color=line_style["color"], alpha=0.18, linewidth=0)
        axes.set_title(panel.title, loc="left")
        axes.set_xlabel(label)
        if panel.is_accuracy:
            axes.set_ylim(-0.02, 1.02)
    for axes in grid.flat[len(bands) :]:
        axes.set_visible(False)
    _legend(figure, handles, methods)
    _save(figure, out, "curves")
    plt.close(figure)


def _legend(figure: Any, handles: dict[str, Any], methods: Sequence[Method]) -> None:
    names = [method.name for method in methods if method.name in handles]
    columns = 2 if max(map(len, names), default=0) > 22 else 4
    # matplotlib omits entries whose label begins with an underscore, so the names replace numbers afterwards.
    numbers = [str(number) for number in range(len(names))]
    legend = figure.legend([handles[name] for name in names], numbers, loc="outside upper left", ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def draw_accuracy(methods: Sequence[Method], intervals: Sequence[Interval | None], label: str, out: Path) -> None:
    """Draw one line per method: the interval, the mean, and every seed."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9.2, 0.9 + 0.42 * len(methods)), layout="constrained")
    for index, (method, interval) in enumerate(zip(methods, intervals, strict=True)):
        if interval is None:
            continue
        colour, marker = style(index)["color"], style(index)["marker"]
        axes.plot([interval.low, interval.high], [index, index], color=colour, linewidth=2.5, alpha=0.6)
        axes.plot([interval.mean], [index], marker=marker, color=colour, markersize=8)
        seeds = [float(np.mean(list(run.test.correct.values()))) for run in method.runs if run.test is not None]
        axes.plot(seeds, [index] * len(seeds), "|", color=colour, markersize=11, markeredgewidth=1.5)
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    _save(figure, out, "accuracy")
    plt.close(figure)


def _save(figure: Any, out: Path, name: str) -> None:
    import matplotlib

    # The same data gives the same file: without a date, and with ids that depend only on the figure.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    # Hundredths of a point are precise enough for paths, and halve the file's size.
    rounded = re.sub(r' d="[^"]*"', lambda path: _hundredths(path[0]), svg.getvalue())
    (out / f"{name}.svg").write_text(rounded)
    figure.savefig(out / f"{name}.png", dpi=150)


def _hundredths(path: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path)


def inline_svg(file: Path, title: str) -> str:
    """Return the ``<svg>`` element of a figure's file for use in HTML; its text and axes have the page's colour."""
    text = file.read_text()
    svg = text[text.index("<svg") :]
    start, end = svg.find("<metadata>"), svg.find("</metadata>")
    if start >= 0:
        svg = svg[:start] + svg[end + len("</metadata>") :]
    opening, _, rest = svg.partition(">")
    return f'{opening} role="img" aria-label="{title}">{rest}'.replace(INK, "currentColor")
