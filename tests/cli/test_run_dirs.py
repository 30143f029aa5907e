"""Where a run's files go, what a refused start leaves, and which checkpoint is the best."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.checkpoints import named_checkpoint
from grpo_lightning.cli.run_dirs import RunDir, config_name, run_of_config
from grpo_lightning.cli.warm_start import _wait_for
from grpo_lightning.errors import ConfigError
from tests.cli.test_cli import ROOT, few, only_run, short_warm_start
from tests.cli.test_user_errors import QUICKSTART, callback, error_of


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def begin(run: Path) -> None:
    for name in ("config.yaml", "environment.json", "events.out.tfevents.1.host", "warm_start/config.yaml"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")


def test_a_refused_start_removes_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run = RunDir(tmp_path / "runs/mine/1")
    run.make()
    begin(run.path)
    run.discard()
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"], "the parents it made are gone, the others are not"
    run.discard()


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "warm_start/policy/config.json", "notes.txt"])
def test_a_refused_start_keeps_whatever_else_is_there(tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path / "mine/1")
    begin(run.path)
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).write_text("x")
    files = sorted(run.path.rglob("*"))
    run.discard()
    assert sorted(run.path.rglob("*")) == files


def test_a_refused_start_leaves_a_run_alone_that_was_there(tmp_path: Path) -> None:
    begin(tmp_path / "old")
    RunDir(tmp_path / "old").discard()
    assert (tmp_path / "old/config.yaml").is_file()
    (tmp_path / "empty").mkdir()
    run = RunDir(tmp_path / "empty")
    begin(run.path)
    run.discard()
    assert list((tmp_path / "empty").iterdir()) == []


def test_only_the_first_process_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "one")
    begin(run.path)
    monkeypatch.setenv("RANK", "1")
    run.discard()
    assert run.path.is_dir()
    monkeypatch.setenv("RANK", "0")
    run.discard()
    assert not run.path.exists()


REFUSED = [
    (["--data.task.init_args.max_value", "0"], "data.task.init_args.max_value"),  # as the task is built
    (["--trainer.strategy", "dpp"], "trainer: You selected"),  # as the trainer is built
    (["--trainer.overfit_batches", "1"], "trainer.overfit_batches"),  # as the data is set up
    (["--model.policy.path", "./none"], "model.policy.path: there is no folder ./none"),  # as the tokenizer is read
    (["--data.max_prompt_tokens", "1"], "data.max_prompt_tokens: all"),
    (callback("ReferenceSync"), "ReferenceSync: this run has no reference"),  # as the callbacks are set up
    (callback("EarlyStopping", monitor="val/x"), "trainer.callbacks: EarlyStopping.monitor"),  # after a validation
    (["--warm_start", "none.yaml"], "warm_start: in none.yaml"),
    (["--ckpt_path", "best"], "ckpt_path: no run under"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text", "given"), [(*case, False) for case in REFUSED] + [(*REFUSED[at], True) for at in (0, 2, 5, 6)]
)
def test_refused_starts_leave_no_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str, given: bool
) -> None:
    place = ["--run_dir", str(tmp_path / "mine")] if given else []
    assert error_of(capsys, *QUICKSTART, *few(tmp_path), *place, *options).startswith(text)
    assert list(tmp_path.iterdir()) == []


def test_a_trained_warm_start_outlives_a_refused_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "configs/quickstart.yaml", "--warm_start", short_warm_start(tmp_path)]
    error_of(capsys, *arguments, *few(tmp_path / "runs"), *callback("EarlyStopping", monitor="val/x"))
    assert (only_run(tmp_path / "runs", "quickstart") / "warm_start/policy/config.json").is_file()


def test_the_others_wait_for_the_policy_of_the_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, looks = tmp_path / "policy", []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            policy.mkdir()

    monkeypatch.setattr("time.sleep", sleep)
    _wait_for(policy, tmp_path / "failed", poll_s=0.25)
    _wait_for(policy, tmp_path / "failed", poll_s=0.25)
    assert looks == [0.25] * 3


def test_runs_are_called_like_their_first_config(tmp_path: Path) -> None:
    assert config_name([], "fit") == "fit"
    assert config_name(["a/b.yaml", "c.yaml"], "fit") == "b"
    (tmp_path / "mine/1/checkpoints").mkdir(parents=True)
    assert config_name([str(tmp_path / "mine/1/config-2.yaml")], "fit") == "mine"
    assert config_name([str(tmp_path / "mine/config.yaml")], "fit") == "config"
    (tmp_path / "mine/1/reproduced/2/checkpoints").mkdir(parents=True)
    assert config_name([str(tmp_path / "mine/1/reproduced/2/config.yaml")], "fit") == "mine"


def test_the_best_is_that_of_the_run_and_not_of_a_checkpoint_callback_in_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "run" / "checkpoints"
    folder.mkdir(parents=True)
    best = {"ModelCheckpoint": str(folder / "step=1.ckpt"), "RunCheckpoint": str(folder / "best-step4.ckpt")}
    states = {name: {"best_model_path": path} for name, path in best.items()}
    for name in ("last", "step=1", "best-step4"):
        torch.save({"callbacks": states, "skipped_steps": 0}, folder / f"{name}.ckpt")
    assert named_checkpoint("best", tmp_path, "mine") == str(folder / "best-step4.ckpt")


def test_the_own_config_of_a_run_names_that_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for run in ("old", "new"):
        folder = tmp_path / "mine" / run / "checkpoints"
        folder.mkdir(parents=True)
        torch.save({"callbacks": {}, "skipped_steps": 0}, folder / "last.ckpt")
    old = tmp_path / "mine/old"
    os.utime(old / "checkpoints/last.ckpt", (1, 1))
    own = run_of_config([str(old / "config-2.yaml"), "other.yaml"])
    assert own == old
    assert run_of_config(["mine.yaml"]) is run_of_config([]) is run_of_config([str(tmp_path / "config.yaml")]) is None
    with caplog.at_level("INFO"):
        assert named_checkpoint("last", tmp_path, "mine", own) == str(old / "checkpoints/last.ckpt")
    assert f"checkpoint: {old}/checkpoints/last.ckpt (last)" in caplog.text
    assert named_checkpoint("last", tmp_path, "mine") == str(tmp_path / "mine/new/checkpoints/last.ckpt")
    (old / "checkpoints/last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"ckpt_path: the run .*old has no last checkpoint"):
        named_checkpoint("last", tmp_path, "mine", own)


def test_the_best_checkpoint_is_found_where_the_run_is_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"trainer.max_steps": 3, "checkpoint.monitor": "val/length_mean", "checkpoint.mode": "min"}
    # Once the policy has been trained, a validation finds the first of three steps to be the best, or a later one.
    main(["fit", *QUICKSTART, *few(tmp_path / "a", **options)])
    shutil.move(tmp_path / "a", tmp_path / "b")
    run = only_run(tmp_path / "b", "quickstart")
    (best,) = (run / "checkpoints").glob("best-step*.ckpt")
    main(["test", *QUICKSTART, *few(tmp_path / "b", **options), "--ckpt_path", "best"])
    saved = yaml.safe_load((only_run(run, "test") / "config.yaml").read_text())
    assert saved["ckpt_path"] == str(best)
    step = torch.load(best, weights_only=True)["global_step"]
    main(["fit", *QUICKSTART, *few(tmp_path / "b", **options | {"trainer.max_steps": 4}), "--ckpt_path", "best"])
    assert (run / "config-2.yaml").is_file(), f"resumed at step {step} in its own directory"
    best.unlink()
    for file in (run / "checkpoints").glob("best*"):
        file.unlink()
    error = error_of(capsys, *QUICKSTART, *few(tmp_path / "b", **options), "--ckpt_path", "best")
    assert error.startswith(
        f"ckpt_path: {run} has no best checkpoint, which a validation with checkpoint.monitor makes"
    )
    none = error_of(capsys, *QUICKSTART, *few(tmp_path / "c"), "--ckpt_path", "best")
    assert none.startswith(f"ckpt_path: no run under {tmp_path}/c/quickstart has a last checkpoint")


def test_a_barebones_run_trains_and_writes_its_record_only(tmp_path: Path) -> None:
    main(["fit", *QUICKSTART, *few(tmp_path), "--trainer.barebones", "true"])
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "environment.json"}, "no log, no checkpoint, and nothing of a callback"
