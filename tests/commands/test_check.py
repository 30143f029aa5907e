"""``grpo check --pass-rates``: what a run starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
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


def test_a_reward_that_tells_nothing_correct_has_no_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short_rewards.py").write_text("def short(completion, answer):\n    return -len(completion) / 10\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = {"function": "short_rewards.short"}
    for options, said in ((function, "neither 0 (wrong) nor 1 (correct): the controls do not apply"), (
        function | {"correct_at": 0.0}, "gold answers do not satisfy their own verifier"
    )):  # fmt: skip
        verifier = json.dumps([{"class_path": "FunctionVerifier", "init_args": options}])
        with nullcontext() if options is function else pytest.raises(SystemExit, match="2"):
            main(["check", *FEW, "--model.verifiers", verifier])
        told = capsys.readouterr()
        assert said in told.out + told.err
        assert "every gold answer" not in told.out
        assert ("the row: '" in told.out and "gold answer '" in told.out) is (options is not function)


def test_one_failure_is_said_in_the_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"train": ["a\nb"], "val": ["2"], "test": ["2"]}
    for split, answers in rows.items():
        lines = [json.dumps({"prompt": "What is one and one?", "answer": answer}) for answer in answers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    task = {"class_path": "Tabular", "init_args": {"path": str(tmp_path), "gold_format": "#### {answer}"}}
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--config", "configs/lfm_gsm8k.yaml", "--data.task", json.dumps(task)])
    told = capsys.readouterr()
    assert "data.task: 1 gold answer does not satisfy its own verifier: repair or remove that row" in told.err
    assert "\n    the row: 'What is one and one?', gold answer 'a\\nb'\n" in told.out


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["check", *FEW, "--pass-rates", str(tmp_path)])
    assert f"--pass-rates: cannot write {tmp_path}: Is a directory" in capsys.readouterr().err
