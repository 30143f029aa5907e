"""``grpo check --pass-rates``: what a run starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_lightning.__main__ import main

ROOT = Path(__file__).parents[2]
FEW = [
    "--config", "configs/quickstart.yaml", "--data.task.init_args.train_size", "9",
    "--data.task.init_args.val_size", "2", "--data.sampling.max_new_tokens", "8",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped configs name their files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def test_pass_rates_are_measured_and_a_run_starts_from_them(
    tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, few = tmp_path / "rates.jsonl", [*FEW, "--model.init_args.policy.path", tiny_model("llama")]
    main(["check", *few, "--data.group_size", "4", "--data.rollout_rows_at_once", "8", "--pass-rates", str(file)])
    assert "9 prompts, 4 completions each:" in capsys.readouterr().out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["attempts"] for line in lines] == [4] * 9
    # Hopeless at step 0, and so out of the first draw: all but three.
    for number, line in enumerate(lines):
        line["passes"] = 2 if number in (1, 4, 7) else 0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curriculum = {"class_path": "EasyToHard", "init_args": {"pass_rates": str(file)}}
    main([
        "fit", *few, "--warm_start", "null", "--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "1",
        "--data.prompts_per_step", "3", "--data.group_size", "2", "--data.curriculum", json.dumps(curriculum),
    ])  # fmt: skip
    after = [json.loads(line) for line in (tmp_path / "run" / "pass_rates.jsonl").read_text().splitlines()]
    assert {line["id"] for line in after if line["attempts"] == 2} == {lines[number]["id"] for number in (1, 4, 7)}


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["check", *FEW, "--pass-rates", str(tmp_path)])
    assert f"--pass-rates: cannot write {tmp_path}: Is a directory" in capsys.readouterr().err
