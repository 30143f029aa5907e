"""The prompt with its best and worst completion that terminal, notebook and TensorBoard show."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grpo_lightning.callbacks import HealthCheck
from grpo_lightning.callbacks.notebook import table
from grpo_lightning.callbacks.shown import example_text
from grpo_lightning.callbacks.tensorboard import samples_table
from grpo_lightning.rollout import Experience, Recipe
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict
from tests.rollout.test_episodes import Chatty
from tests.toy import fit, grpo


def attempt(text: str, reward: float, prompt: str = "6 * 7?", cut: bool = False, error: str | None = None) -> Attempt:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    return Attempt(
        Prompt([{"role": "user", "content": prompt}]), [1], completion=Completion([1], text, reason, [0.0], [0.0]),
        verdict=Verdict(False, False, error=error), reward=reward,
    )  # fmt: skip


def batch(*groups: list[Attempt], turns: Sequence[Attempt] = ()) -> Experience:
    """Groups of a step; ``turns`` follow its first attempts, as the second turns of their episodes."""
    own = [replace(one, group=str(number)) for number, group in enumerate(groups) for one in group]
    later = [replace(one, group=own[row].group, number=2, parent=row) for row, one in enumerate(turns)]
    recipe = Recipe("train", len(groups[0]), environment=Chatty() if turns else None)
    return experience_of([*own, *later], recipe, {}, 0, torch.device("cpu"))


def test_the_prompt_whose_rewards_differ_most() -> None:
    groups = [
        [attempt("a", 0.5, "first"), attempt("b", 0.4, "first"), attempt("c", 0.4, "first")],
        [attempt("42", 1.0), attempt("forty", 0.0, cut=True), attempt("?", -9.0, error="it broke")],
    ]
    assert example_text(batch(*groups)) == (
        "prompt:\n    6 * 7?\nbest completion, reward 1.00:\n    42\n"
        "worst completion, reward 0.00, truncated:\n    forty"
    )
    shown = example_text(batch(*groups), 1)
    assert shown is not None
    assert shown.startswith("prompt:\n    first\nbest completion, reward 0.50")


def test_episodes_are_ranked_and_shown_by_their_whole_reward() -> None:
    # By hand: the first turns earn 1 and 0.2, the second ones 0 and 2.
    groups = [[attempt("one", 1.0, "begin"), attempt("two", 0.2, "begin")]]
    turns = [attempt("last of one", 0.0, "again", cut=True), attempt("last of two", 2.0, "again")]
    episodes = batch(*groups, turns=turns)
    assert example_text(episodes) == (
        "prompt:\n    begin\nbest completion, reward 2.20:\n    last of two\n"
        "worst completion, reward 1.00, truncated:\n    last of one"
    )
    shown = re.findall(r"<td[^>]*>([^<]*)</td>", table(episodes, 8, "Completions"))
    assert shown == ["2.2", "last of two", "1 (truncated)", "last of one"]
    best, worst, _ = samples_table(episodes, 1, 0).splitlines()[2:]
    assert best == "| **best**<br>wrong<br>reward 2.20<br>2 tokens in 2 turns | begin | last of two |"
    assert worst == "| **worst**<br>wrong<br>reward 1.00<br>2 tokens in 2 turns, truncated | begin | last of one |"


def test_one_completion_is_shown_once() -> None:
    alone = example_text(batch([attempt("42", 1.0)]))
    assert alone == "prompt:\n    6 * 7?\ncompletion, reward 1.00:\n    42"
    assert example_text(batch([attempt("42", 1.0), attempt("42", 1.0)])) == alone
    assert example_text(batch([attempt("42", 1.0, error="it broke")])) is None


def test_texts_cannot_change_the_terminal_and_are_not_long() -> None:
    text = example_text(batch([attempt("a\x1b[31m\nb" + "x" * 900 + "end", 1.0), attempt("", 0.0)]))
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
