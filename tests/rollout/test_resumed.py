"""What a resumed run drops from the files of its earlier starts, and what it keeps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.commands.compare.runs import read_curves
from grpo_lightning.rollout.resumed import drop_curves, drop_rollouts, keep_metrics
from tests.toy import trainer


def write_lines(file: Path, steps: range, torn: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"step": step, "text": "x"}) + "\n" for step in steps for _ in range(2)) + torn)


def stored(root: Path) -> dict[str, list[int]]:
    """The steps in each JSONL file."""
    return {
        str(file.relative_to(root)): sorted({json.loads(line)["step"] for line in file.read_text().splitlines()})
        for file in sorted(root.rglob("*.jsonl"))
    }


def test_stored_rollouts_end_before_the_step_that_is_made_again(tmp_path: Path) -> None:
    first, second = tmp_path / "001-from-step-000000", tmp_path / "002-from-step-000006"
    write_lines(first / "rank0-step-000000.jsonl", range(3))
    write_lines(first / "rank0-step-000003.jsonl", range(3, 6))
    write_lines(first / "rank1-step-000000.jsonl", range(6), torn='{"step": 1')
    write_lines(second / "rank0-step-000006.jsonl", range(6, 8))
    drop_rollouts(tmp_path, 8)
    assert [len(steps) for steps in stored(tmp_path).values()] == [3, 3, 6, 2], "only a torn line is dropped"
    drop_rollouts(tmp_path, 5)
    assert stored(tmp_path) == {
        "001-from-step-000000/rank0-step-000000.jsonl": [0, 1, 2],
        "001-from-step-000000/rank0-step-000003.jsonl": [3, 4],
        "001-from-step-000000/rank1-step-000000.jsonl": [0, 1, 2, 3, 4],
    }
    assert not second.exists()
    drop_rollouts(tmp_path, 3)
    assert [file.name for file in first.iterdir() if "rank0" in file.name] == ["rank0-step-000000.jsonl"]
    drop_rollouts(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_parquet_of_steps_made_again_and_unfinished_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "001-from-step-000000"
    folder.mkdir()
    names = [*(f"rank0-step-00000{step}.parquet" for step in range(4)), "rank0-step-000001.parquet.part"]
    for name in names:
        (folder / name).touch()
    drop_rollouts(tmp_path, 2)
    assert sorted(file.name for file in folder.iterdir()) == names[:2]


def log_steps(logger: Any, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"loss": float(step)}, step)
        logger.save()


def metrics(folder: Path) -> list[str]:
    """The steps in all CSV files."""
    rows: list[str] = []
    for file in folder.rglob("*.csv"):
        with file.open(newline="") as lines:
            rows += [row["step"] for row in csv.DictReader(lines)]
    return sorted(rows)


@pytest.mark.parametrize("version", ["", None], ids=["one folder", "a folder per start"])
def test_a_csv_logger_keeps_the_steps_before_and_has_none_twice(tmp_path: Path, version: str | None) -> None:
    for start in (0, 2, 3):
        logger = CSVLogger(str(tmp_path), name="csv", version=version)
        run = trainer(tmp_path, 9, logger=logger)
        keep_metrics(run)
        assert isinstance(logger.experiment.metrics, list), "which deletes what is in the way"
        drop_curves(run, start)
        log_steps(logger, range(start, start + 3))
        with next(iter((tmp_path / "csv").rglob("metrics.csv"))).open("a") as file:
            file.write("1.0,1")  # a row that was not written to its end, which looks like one of step 1
    drop_curves(run, 9)
    assert len(list(tmp_path.rglob("*.csv"))) == 3
    complete = [step for step in metrics(tmp_path) if step != "1"]
    assert complete == ["0", "2", "3", "4", "5"]


def test_a_csv_logger_in_the_run_directory_may_have_begun_in_lightnings_folder(tmp_path: Path) -> None:
    log_steps(CSVLogger(str(tmp_path)), range(3))
    drop_curves(trainer(tmp_path, 9, logger=CSVLogger(str(tmp_path), name="", version="")), 2)
    assert metrics(tmp_path / "lightning_logs/version_0") == ["0", "1"]


def test_a_csv_logger_outside_the_run_may_have_other_runs_beside_it(tmp_path: Path) -> None:
    other = CSVLogger(str(tmp_path / "logs"))
    log_steps(other, range(3))
    logger = CSVLogger(str(tmp_path / "logs"))
    drop_curves(trainer(tmp_path / "run", 9, logger=logger), 0)
    assert metrics(tmp_path / "logs/lightning_logs/version_0") == ["0", "1", "2"]


def test_tensorboard_shows_a_resumed_step_once_also_behind_a_torn_event(tmp_path: Path) -> None:
    for start in (0, 2):
        logger = TensorBoardLogger(str(tmp_path), name="", version="")
        if start:
            drop_curves(trainer(tmp_path, 9, logger=logger), start)
        log_steps(logger, range(start, 4 - start // 2))
        logger.finalize("success")
        (file,) = set(tmp_path.glob("events*")) - {tmp_path / "first"}
        file.write_bytes(file.read_bytes()[:-7])  # the last event, of one step too many, is torn
        file.rename(tmp_path / f"events.out.tfevents.{start}.x.0")
        if start:
            break
        (tmp_path / "events.out.tfevents.0.x.0").rename(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "events.out.tfevents.0.x.0")
    curve = read_curves(tmp_path)["loss"]
    assert list(curve.steps - 1) == [0, 1]


def test_a_checkpoint_that_is_written_only_in_part_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, 1)
    RunCheckpoint().setup(run, None, "fit")  # type: ignore[arg-type]
    file, save = tmp_path / "checkpoints/last.ckpt", torch.save
    run.strategy.checkpoint_io.save_checkpoint({"step": 1}, file)

    def full_disk(checkpoint: Any, path: Path) -> None:
        save(checkpoint, path)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        run.strategy.checkpoint_io.save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}
    monkeypatch.undo()
    run.strategy.checkpoint_io.save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 2}
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]
