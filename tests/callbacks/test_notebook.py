"""What a notebook shows of a run: curves, and completions as text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from grpo_lightning.callbacks import NotebookView, RunSummary
from grpo_lightning.callbacks.notebook import curves, table
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import FinishReason, Verdict
from tests.toy import BrokenVerifier, experience, fit, grpo, llama_alone

STOP, CUT = FinishReason.STOP, FinishReason.LENGTH


def test_a_curve_goes_through_its_points() -> None:
    svg = ElementTree.fromstring(curves({"training": [(1, 0.0), (2, 0.5), (4, 1.0)], "validation": []}, "a < b"))
    (line,) = svg.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    # By hand: steps 1, 2 and 4 of 4 from x = 56 to 628, rewards 0, 0.5 and 1 from y = 166 up to 24.
    assert points == [(199.0, 166.0), (342.0, 95.0), (628.0, 24.0)]
    texts = [text.text for text in svg.iter("text")]
    assert {"a < b", "step", "4", "0", "1", "training"} <= set(texts)
    assert "validation" not in texts
    assert curves({"training": []}, "nothing") == ""
    assert "polyline" in curves({"training": [(0, 2.0)]}, "one point")


def test_the_table_has_the_prompt_whose_rewards_differ_most_and_no_markup_of_the_model() -> None:
    rows = [(0.2, STOP), (0.2, STOP), (0.9, STOP), (0.1, CUT)]
    text = table(experience(rows), 8, "Completions of step 3")
    rewards = re.findall(r"<tr><td[^>]*>([^<]*)</td>", text)
    assert rewards == ["0.9", "0.1 (truncated)"]
    assert len(re.findall("<tr><td", table(experience(rows, group_size=4), 2, ""))) == 2
    batch = experience(rows[:1], group_size=1)
    (attempt,) = batch.attempts
    hostile = replace(attempt, completion=replace(attempt.completion, text="<script>x</script>\x1b[2J"))
    shown = table(replace(batch, attempts=[hostile]), 8, "<b>")
    assert "&lt;script&gt;x&lt;/script&gt;\\x1b[2J" in shown
    assert "<script>" not in shown
    broken = replace(attempt, verdict=Verdict(False, False, error="gone"))
    assert "broke on all" in table(replace(batch, attempts=[broken]), 8, "Completions")


@llama_alone
def test_a_notebook_has_both_while_it_trains_and_a_terminal_neither(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    view = NotebookView(interval_s=0.0)

    def shown(steps: int = 3, **options: Any) -> list[Any]:
        module, callbacks = grpo(model_path, updates_per_rollout=2, **options), [view, RunSummary()]
        with capture_output() as captured:
            fit(tmp_path, module, 2 * steps, callbacks=callbacks, limit_val_batches=1, val_check_interval=2)
        return [output.data["text/html"] for output in captured.outputs]

    shell = InteractiveShell.instance()
    try:
        assert shown() == []
        shell.kernel = object()  # which the shell of a notebook has
        first, *updates = shown()
        points = {name: [step for step, _ in line] for name, line in view._points.items()}
        broken = shown(1, verifiers=[BrokenVerifier(on="")], max_error_rate=1.0)
    finally:
        InteractiveShell.clear_instance()
    assert first == ""
    # A validation before the first step, one after the second, one after the last; each step makes two updates.
    assert points == {"training": [1, 2, 3], "validation": [0, 2, 3]}
    assert "broke on all" in broken[-1]
    assert view._points["training"] == []
    assert len(updates) == 4, "one per step, and one at the end"
    for step, html in enumerate(updates[:3], start=1):
        assert f"Completions of step {step}" in html
        assert len(re.findall(r"<polyline points=\"([^\"]*)\"", html)[0].split()) == step


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="NotebookView: rows must be at least 1"):
        NotebookView(rows=0)
