"""Every curve that a run logs, declared once.

TensorBoard's layout, the progress bar, the panels of ``grpo compare``, the names that parts of verifiers may not take,
and the tables of ``docs/metrics.md`` are made from this declaration; tests hold runs to it. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from grpo_lightning.curves.curve import Curve, Reduction
from grpo_lightning.curves.learning import CRITIC, LEARNING
from grpo_lightning.curves.running import COSTS, EVALUATION, PEAK_PANEL
from grpo_lightning.errors import ConfigError

SECTIONS: dict[str, tuple[Curve, ...]] = LEARNING | EVALUATION | COSTS | CRITIC
"""The declared curves by their section of ``docs/metrics.md``."""

CURVES: dict[str, Curve] = {curve.name: curve for section in SECTIONS.values() for curve in section}
"""The declared curves by name, with those of :func:`declare`."""

CHARTS: dict[str, tuple[str, ...]] = {
    "Reward": ("Reward", "Correct and well formed", "Errors, and groups without signal", "Each verifier"),
    "Policy": (
        "KL", "KL per completion", "Weight of the KL", "Entropy", "Weight of the entropy", "Loss", "Ratio",
        "Distillation", "Passes over the rollouts", "Gradient", "Learning rate", "Advantages", "Values",
    ),
    "Completions": ("Tokens", "Truncated", "Turns", "Further attempts"),
    "Memory": ("Memory",),
    "Time": ("Seconds per step", "Tokens per second", "Waiting", "Padding", "Totals"),
    "Validation": ("Accuracy", "Format", "Completions", "Errors and truncated"),
}  # fmt: skip
"""The order of TensorBoard's custom scalars: the titles of the charts in each category."""

PANELS: tuple[str, ...] = (
    "mean reward per step",
    "validation accuracy",
    "KL to the reference (nats)",
    "KL per update (nats)",
    "std of the rewards in a group",
    "gain of normalising the advantages",
    "completion length (tokens)",
    "entropy (nats per token)",
    PEAK_PANEL,
)
"""The order of the panels in the report of ``grpo compare``."""


def declare(curve: Curve) -> Curve:
    """Declare a curve from outside the project, in the module of the class that logs it.

    A run then logs it where ``Curve.bar`` and ``Curve.chart`` say. Declaring the same curve again changes nothing.

    Raises:
        ConfigError: another curve has its name or its label in the progress bar, or there is no such chart or panel.
    """
    others = [other for other in CURVES.values() if other != curve]
    if any(other.name == curve.name for other in others):
        raise ConfigError(f"curve {curve.name}: another curve has this name: rename it")
    if curve.bar is not None and any(other.bar == curve.bar for other in others):
        raise ConfigError(f"curve {curve.name}: bar {curve.bar!r} is the label of another curve: change it")
    titles = [title for charts in CHARTS.values() for title in charts]
    for key, title, known in (("chart", curve.chart, titles), ("panel", curve.panel, PANELS)):
        if title is not None and title not in known:
            raise ConfigError(f"curve {curve.name}: there is no {key} {title!r}: give one of {', '.join(known)}")
    CURVES[curve.name] = curve
    return curve


def find(name: str) -> Curve | None:
    """The declaration of a logged name; ``None`` if there is none. ``test/*`` is declared as ``val/*``."""
    name = f"val/{name.removeprefix('test/')}" if name.startswith("test/") else name
    families = (curve for curve in CURVES.values() if curve.is_family and curve.pattern.fullmatch(name))
    return CURVES.get(name) or next(families, None)


def taken_names(prefix: str) -> frozenset[str]:
    """The names after ``prefix`` that are curves themselves, so that no member of a family may have them."""
    single = (name for name, curve in CURVES.items() if not curve.is_family)
    return frozenset(name.removeprefix(prefix) for name in single if name.startswith(prefix))


def of_panel(title: str) -> tuple[Curve, ...]:
    """The curves that a panel of the report shows the highest of."""
    return tuple(curve for curve in CURVES.values() if curve.panel == title)


def tensorboard_layout(logged: Iterable[str]) -> dict[str, dict[str, str]]:
    """The regular expression that matches the curves of a chart, by category and title.

    Args:
        logged: names of logged curves; charts that show none of them are omitted, and so are empty categories.
    """
    names = list(logged)
    layout: dict[str, dict[str, str]] = {}
    for category, titles in CHARTS.items():
        expressions = {title: _expression(title) for title in titles}
        layout[category] = {
            title: text for title, text in expressions.items() if any(re.search(text, name) for name in names)
        }
    return {category: charts for category, charts in layout.items() if charts}


def _expression(title: str) -> str:
    """A single expression per chart: TensorBoard's page makes one request for each."""
    charted = [curve for curve in CURVES.values() if curve.chart == title]
    return "|".join(f"^{_but_declared(curve)}{curve.pattern.pattern}$" for curve in charted)


def _but_declared(family: Curve) -> str:
    """Keeps the expression of a family from matching curves that are declared by their own names."""
    taken = sorted(name for name, curve in CURVES.items() if not curve.is_family and family.pattern.fullmatch(name))
    return f"(?!(?:{'|'.join(taken)})$)" if family.is_family and taken else ""


__all__ = [
    "CHARTS", "CURVES", "PANELS", "PEAK_PANEL", "SECTIONS", "Curve", "Reduction", "declare", "find", "of_panel",
    "taken_names", "tensorboard_layout",
]  # fmt: skip
