"""The curves as data for the interactive charts of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from grpo_lightning.commands import charts
from grpo_lightning.commands.compare.dynamics import Axis, Band, Bands, Panel, final_level
from grpo_lightning.commands.compare.figures import style
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.statistics import Array

POINTS = 240
"""Most points of a curve: more than the pixels of a panel show would only make the page heavy."""
DASHES: dict[str, list[int]] = {"-": [], "--": [8, 4], ":": [2, 4]}


def chart_data(methods: Sequence[Method], bands: Mapping[Axis, Bands]) -> dict[str, Any]:
    """Return what ``curves.js`` draws: the axes, the methods with their looks, and their curves in each panel."""
    panels: dict[Panel, dict[str, list[Any]]] = {}
    for axis, curves in bands.items():
        for panel, of_methods in curves.items():
            panels.setdefault(panel, {})[axis.name] = [
                _curve(band) if band is not None else _level(method, panel, axis)
                for method, band in zip(methods, of_methods, strict=True)
            ]
    looks = [style(index) for index in range(len(methods))]
    return {
        "axes": [{"name": axis.name, "label": axis.label} for axis in bands],
        "methods": [
            {"name": method.name, "colour": look["color"], "dash": DASHES[look["linestyle"]]}
            for method, look in zip(methods, looks, strict=True)
        ],
        "panels": [
            {"title": panel.title, "share": panel.is_accuracy, "curves": curves} for panel, curves in panels.items()
        ],
    }


def _curve(band: Band) -> dict[str, Any]:
    places = np.unique(np.linspace(0, len(band.x) - 1, min(POINTS, len(band.x))).round().astype(int))
    curve = {"x": _rounded(band.x[places]), "mean": _rounded(band.mean[places])}
    if band.seeds > 1:
        curve |= {"low": _rounded(band.low[places]), "high": _rounded(band.high[places])}
    return curve


def _level(method: Method, panel: Panel, axis: Axis) -> dict[str, Any] | None:
    level = final_level(method, panel, axis)
    return None if level is None else {"level": round(level, 4)}


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def chart_html(data: Mapping[str, Any]) -> str:
    """Return the elements that show the curves, with their data and scripts."""
    source = (files("grpo_lightning.commands.compare") / "curves.js").read_text(encoding="utf-8")
    scripts = "\n".join(f"<script>{text}</script>" for text in [*charts.scripts(), source])
    return (
        '<div id="axes" class="buttons"></div>\n<div id="legend" class="buttons"></div>\n<div id="panels"></div>\n'
        f'<script type="application/json" id="curves">{charts.safe_json(data)}</script>\n{scripts}'
    )
