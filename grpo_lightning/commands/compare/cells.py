"""The cells of the report's tables, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NOT_MEASURED = "not measured"


def over_seeds(values: Sequence[float | None], show: Callable[[float], str], combine: Any) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOT_MEASURED
    return show(float(combine(known))) + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # never -0.0


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.0f} k" if number < 1e6 else f"{number / 1e6:.2f} M"
