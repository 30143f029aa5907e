"""The shipped configs of episodes, and what their tasks show a policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.environments.calls import FORMATS
from grpo_lightning.environments.tools import calculator
from grpo_lightning.tasks import Calculations, Numbers

ROOT = Path(__file__).parents[2]


CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.yaml") if {"guess", "tools"} & set(path.stem.split("_"))
)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    few = {
        "run_dir": str(tmp_path / "run"), "trainer.accelerator": "cpu", "trainer.max_steps": "1",
        "trainer.val_check_interval": "1",
        "trainer.limit_val_batches": "1", "trainer.enable_progress_bar": "false", "data.prompts_per_step": "2",
        "data.val_batch_size": "4",
    }  # fmt: skip
    if not name.endswith("_sft"):
        few |= {"warm_start": "null", "model.init_args.policy.init": "random", "data.group_size": "2"}
    main(["fit", "--config", f"configs/{name}.yaml", *(text for key in few for text in (f"--{key}", few[key]))])
    assert (tmp_path / "run/policy/tokenizer_config.json").is_file()
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    if name == "tools":
        first = next((tmp_path / "run/rollouts").rglob("*.jsonl")).read_text().splitlines()[0]
        assert json.loads(first)["prompt"][0]["content"].startswith(("Compute ", "Repeat "))


def test_the_demonstrations_call_the_calculator_as_it_is_read() -> None:
    task = Calculations(demonstrations=True, train_size=200)
    called = 0
    for prompt in task.prompts("train"):
        assert prompt.solution is not None
        calls = FORMATS["hermes"].calls(prompt.solution)
        called += len(calls)
        if calls:
            assert calculator(**calls[0].arguments) == prompt.answer
            assert len(prompt.messages) == 1
        else:
            assert prompt.solution == task.gold_completion(prompt)
    assert 30 < called < 70, "an eighth to a third"
    assert {prompt.metadata["kind"] for prompt in task.prompts("train")} == {"product", "repeat"}
    assert not any("tool_call" in str(p.messages) for p in Calculations(demonstrations=True, calls=0).prompts("val"))
    assert len(Calculations(digits=1, train_size=20, val_size=2, test_size=2).prompts("train")[0].answer) <= 2


def test_guesses_to_imitate_are_random_and_what_is_said_of_them_is_true() -> None:
    task = Numbers(demonstrations=300, longest=2)
    guesses = set()
    for prompt in task.prompts("train"):
        guesses.add(prompt.solution)
        for guess, hint in zip(prompt.messages[1::2], prompt.messages[2::2], strict=True):
            assert hint["content"] == ("higher" if int(guess["content"]) < int(prompt.answer) else "lower")
        assert len(prompt.messages) in (1, 3, 5)
    assert guesses == {str(number) for number in range(10, 26)}
    assert [prompt.answer for prompt in Numbers(1, 3).prompts("val")] == ["1", "2", "3"]
