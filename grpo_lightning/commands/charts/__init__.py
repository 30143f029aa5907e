"""Interactive charts for pages that work offline: uPlot 1.6.32 (MIT licence), unchanged, and the look of our charts.

uPlot is in this folder because no package index of Python has it, and a page with it weighs 55 KB; with plotly, 4.7 MB.
To update it, copy ``uPlot.iife.min.js``, ``uPlot.min.css`` and ``LICENSE`` from its npm package.
"""

from __future__ import annotations

from importlib.resources import files


def scripts() -> list[str]:
    """The scripts that a page needs to call ``chart``, in order."""
    return [_read("uPlot.iife.min.js"), _read("charts.js")]


def style() -> str:
    """The style sheet of the charts."""
    return _read("uPlot.min.css") + _read("charts.css")


def _read(name: str) -> str:
    return (files("grpo_lightning.commands.charts") / name).read_text(encoding="utf-8")
