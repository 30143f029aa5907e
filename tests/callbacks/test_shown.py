"""The prompt with its best and worst completion that the terminal shows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_lightning.callbacks import HealthCheck
from grpo_lightning.callbacks.shown import example_text
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict
from tests.toy import fit, grpo


def attempt(text: str, reward: float, prompt: str = "6 * 7?", cut: bool = False, error: str | None = None) -> Attempt:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    return Attempt(
        Prompt([{"role": "user", "content": prompt}]), [1], completion=Completion([1], text, reason, [0.0], [0.0]),
        verdict=Verdict(False, False, error=error), reward=reward,
    )  # fmt: skip


def test_the_prompt_whose_rewards_differ_most() -> None:
    groups = [
        [attempt("a", 0.5, "first"), attempt("b", 0.4, "first")],
        [attempt("42", 1.0), attempt("forty", 0.0, cut=True), attempt("?", -9.0, error="it broke")],
    ]
    assert example_text(groups) == (
        "prompt:\n    6 * 7?\nbest completion, reward 1.00:\n    42\n"
        "worst completion, reward 0.00, truncated:\n    forty"
    )


def test_one_completion_is_shown_once() -> None:
    assert example_text([[attempt("42", 1.0)]]) == "prompt:\n    6 * 7?\ncompletion, reward 1.00:\n    42"
    assert example_text([[attempt("42", 1.0), attempt("42", 1.0)]]) == example_text([[attempt("42", 1.0)]])
    assert example_text([[attempt("42", 1.0, error="it broke")], []]) is None


def test_texts_cannot_change_the_terminal_and_are_not_long() -> None:
    text = example_text([[attempt("a\x1b[31m\nb" + "x" * 900 + "end", 1.0), attempt("", 0.0)]])
    assert text is not None
    assert "    a\\x1b[31m\n    bxxx" in text
    assert "\x1b" not in text
    assert " [...] " in text
    assert len(text) < 600
    assert text.endswith("worst completion, reward 0.00:\n    (empty)")


@pytest.mark.parametrize("examples", [True, False])
def test_the_preflight_and_each_validation_show_one(
    examples: bool, tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        options = {"limit_val_batches": 1, "val_check_interval": 1}
        fit(tmp_path, grpo(tiny_model("llama")), 2, callbacks=[HealthCheck(prompts=2, examples=examples)], **options)
    shown = [record.getMessage() for record in caplog.records if "prompt:\n" in record.getMessage()]
    if not examples:
        assert shown == []
        return
    before, *validations = shown
    assert before.startswith("preflight: prompt:\n    train ")
    assert "\nbest completion, reward " in before
    assert "\nworst completion, reward " in before
    assert [text.split(" optimizer")[0] for text in validations] == ["validation after 1", "validation after 2"]
    prompts = {text.split("prompt:\n")[1].split("\n")[0] for text in validations}
    assert prompts == {"    val 0"}, "the same prompt each time"
