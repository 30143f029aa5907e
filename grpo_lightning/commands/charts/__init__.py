"""Interactive charts for pages that work offline: uPlot 1.6.32 (MIT licence), unchanged, and the look of our charts.

uPlot is in this folder because no package index of Python has it, and a page with it weighs 55 KB; with plotly, 4.7 MB.
To update it, copy ``uPlot.iife.min.js``, ``uPlot.min.css`` and ``LICENSE`` from its npm package.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def scripts() -> list[str]:
    """The scripts that a page needs to call ``chart``, in order."""
    return [_read("uPlot.iife.min.js"), _read("charts.js")]


def style() -> str:
    """The style sheet of the charts."""
    return _read("uPlot.min.css") + _read("charts.css")


def safe_json(value: Any) -> str:
    """Write JSON that is safe inside a script element, and in a script, whatever the texts contain.

    ``<`` is escaped, so ``</script>`` cannot end the element and ``<!--<script>`` cannot change how it is parsed.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return (files("grpo_lightning.commands.charts") / name).read_text(encoding="utf-8")
