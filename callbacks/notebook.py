"""In a notebook: a curve and a table of completions, updated in place while a run learns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.errors import ConfigError
from grpo_lightning.output import in_notebook
from grpo_lightning.rollout import EvaluationEnd, Experience, RunCallback, StepEnd

from .shown import shortened, widest_group

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 56, 34
_COLOURS = ("#2a78d6", "#d9663a")


class NotebookView(RunCallback):
    """Shows the reward of every step as a curve, with that of validations, and completions of the last step as a table.

    Outside of a notebook it does nothing.

    Args:
        rows: completions in the table: of the prompt whose rewards differ most, the best first.
        interval_s: seconds between updates.

    Raises:
        ConfigError: an option is out of its range.
    """

    def __init__(self, rows: int = 8, interval_s: float = 1.0) -> None:
        if rows < 1 or interval_s < 0:
            raise ConfigError(f"NotebookView: rows must be at least 1, and interval_s 0, not {rows} and {interval_s}")
        self.rows = rows
        self.interval_s = interval_s
        self._place: Any = None
        self.reset()

    def reset(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {"training": [], "validation": []}
        self._steps = 0  # training steps done, which may make several optimizer steps each
        self._table = ""
        self._shown_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if in_notebook() and trainer.is_global_zero:
            from IPython.display import HTML, display

            self._place = display(HTML(""), display_id=True)

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if self._place is None or end.experience is None:
            return
        self._steps = end.step + 1
        if "reward/mean" in end.metrics:  # unless the verifiers broke on all
            self._points["training"].append((self._steps, end.metrics["reward/mean"]))
        self._table = table(end.experience, self.rows, f"Completions of step {end.step + 1}")
        if time.monotonic() - self._shown_at >= self.interval_s:
            self._show()

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        if self._place is not None and end.reward is not None:
            self._points["validation"].append((self._steps, end.reward.mean))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()  # by then the last validation has been made, too

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _show(self) -> None:
        from IPython.display import HTML

        self._shown_at = time.monotonic()
        self._place.update(HTML(curves(self._points, "mean reward") + self._table))

    def _end(self) -> None:
        if self._place is not None:
            self._show()
            self._place = None


def curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """Curves over steps, as an SVG that takes the colours of the page."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    last = max(1, *(step for step, _ in points))
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * step / last

    def y(value: float) -> float:
        return 24 + (HEIGHT - 24 - BOTTOM) * (high - value) / (high - low)

    axes = f'<path d="M{LEFT},20V{y(low):.1f}H{WIDTH - 12}" fill="none" stroke="currentColor" stroke-opacity="0.4"/>'
    texts: list[tuple[float, float, str, str]] = [
        (LEFT - 6, y(high) + 4, "end", f"{high:.3g}"),
        (LEFT - 6, y(low) + 4, "end", f"{low:.3g}"),
    ]
    texts += [(LEFT, y(low) + 16, "middle", "0"), (x(last), y(low) + 16, "end", str(last))]
    texts += [((LEFT + WIDTH) / 2, HEIGHT - 4, "middle", "step"), (LEFT, 13, "start", title)]
    lines = ""
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
        lines += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        lines += "".join(
            f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2" fill="{colour}"/>'
            for step, value in (line if len(line) <= 60 else line[-1:])
        )
        texts.append((WIDTH - 12 - 90 * number, 13, "end", name))
        lines += f'<circle cx="{WIDTH - 16 - 90 * number - 6.5 * len(name):.0f}" cy="9" r="4" fill="{colour}"/>'
    labels = "".join(
        f'<text x="{at:.1f}" y="{down:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'
        for at, down, anchor, text in texts
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%;font:12px sans-serif" role="img" '
        f'aria-label="{escape(title)} by step">{axes}{lines}{labels}</svg>'
    )


def table(experience: Experience, rows: int, title: str) -> str:
    """Completions of the prompt whose rewards differ most, from the best to the worst; the text is shown as text."""
    group = widest_group(experience)
    if not group:
        return f"<p>{escape(title)}: the verifier broke on all of them</p>"
    chosen = group if len(group) <= rows else [*group[: rows - rows // 2], *group[len(group) - rows // 2 :]]
    cell = "text-align:left;vertical-align:top;padding:2px 8px;white-space:pre-wrap;overflow-wrap:anywhere"
    body = "".join(
        f'<tr><td style="{cell}">{one.outcome.reward:.3g}{" (truncated)" if one.outcome.is_truncated else ""}</td>'
        f'<td style="{cell}">{escape(shortened(one.answer.completion.text))}</td></tr>'
        for one in chosen
    )
    prompt = escape(shortened(group[0].prompt))
    return (
        f'<table style="max-width:100%"><caption style="text-align:left;white-space:pre-wrap"><b>{escape(title)}</b>: '
        f'{prompt}</caption><thead><tr><th style="{cell}">reward</th><th style="{cell}">completion</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
