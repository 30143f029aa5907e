"""What a resumed run drops from its files: everything that was logged of the steps that it makes again.

A run that was killed has logged steps that its last checkpoint does not have yet. Without them, curves and rollouts
hold every step once, whatever reads them. A last line that was not written to its end is dropped as well.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from grpo_lightning.stored import whole_file

log = logging.getLogger(__name__)

METRICS = "metrics.csv"
"""The file that Lightning's ``CSVLogger`` writes."""

_ROLLOUTS = re.compile(r"(rank\d+)-step-(\d+)\.(jsonl|parquet)")


def keep_metrics(trainer: pl.Trainer) -> None:
    """Rename the files that ``CSVLogger`` would delete when it starts in their folder; comes before it does.

    ``metrics.csv`` becomes ``metrics-1.csv``, the one of the next start ``metrics-2.csv``, and so on.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and (file := Path(logger.log_dir) / METRICS).is_file():
            file.rename(next(path for n in count(1) if not (path := file.with_name(f"metrics-{n}.csv")).exists()))


def drop_curves(trainer: pl.Trainer, step: int) -> None:
    """Drop what the loggers of a run have written of ``step`` and later ones, before this start writes anything.

    TensorBoard's files are left as they are: an event tells readers to ignore these steps of earlier files. Of a
    ``CSVLogger``, the files of earlier starts are cut if they are in the run directory. Other loggers keep what they
    have.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _purge(logger, step)
        elif isinstance(logger, CSVLogger):
            for file in _earlier_metrics(Path(logger.log_dir), Path(trainer.default_root_dir)):
                _cut_metrics(file, step)


def _purge(logger: TensorBoardLogger, step: int) -> None:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    # As SummaryWriter(purge_step=step) does, which Lightning has built already.
    event = Event(session_log=SessionLog(status=SessionLog.START))
    logger.experiment._get_file_writer().add_event(event, step)
    logger.experiment.flush()


def _earlier_metrics(folder: Path, run_dir: Path) -> Iterator[Path]:
    """Files of earlier starts: in the logger's folder, and beside it where every start has its own, ``version_N``.

    A logger in the run directory itself may have begun in ``lightning_logs``, which is Lightning's default.
    """
    yield from folder.glob("metrics-*.csv")
    if folder.resolve() == run_dir.resolve():
        yield from run_dir.glob("lightning_logs/version_*/metrics*.csv")
    elif run_dir.resolve() in folder.resolve().parents:
        siblings = {*folder.parent.glob("version_*")} - {folder}
        yield from (file for sibling in siblings for file in sibling.glob("metrics*.csv"))


def _cut_metrics(file: Path, step: int) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    columns = next(csv.reader(whole[:1]), [])
    if "step" not in columns:
        return
    place = columns.index("step")
    kept = whole[:1] + [line for line in whole[1:] if int(next(csv.reader([line]))[place]) < step]
    if kept != lines:
        with whole_file(file) as part:
            part.write_bytes("".join(kept).encode())


def drop_rollouts(root: Path, step: int) -> None:
    """Drop the stored rollouts of ``step`` and later ones, of all ranks.

    Args:
        root: the folder of all starts, as ``RolloutLogger`` writes it.
        step: the first step that is made again.
    """
    dropped = False
    for folder in root.glob("*-from-step-*"):
        last: dict[str, Path] = {}
        for file in sorted(folder.iterdir()):
            found = _ROLLOUTS.fullmatch(file.name)
            if found is None or int(found[2]) >= step:
                # Parquet that was not written to its end has another name.
                file.unlink()
                dropped = True
            elif found[3] == "jsonl":
                last[found[1]] = file
        # Steps follow each other in the files of a rank, so only its last one can reach that far.
        for file in last.values():
            dropped |= _cut_lines(file, step)
        if not any(folder.iterdir()):
            folder.rmdir()
    if dropped:
        log.info("resumed at step %d: rollouts that were stored of later steps are dropped from %s", step, root)


def _cut_lines(file: Path, step: int) -> bool:
    """End a JSONL file before the first line of ``step``, or one that is not whole; whether anything was dropped."""
    end = 0
    with file.open("rb+") as lines:
        for line in lines:
            if not line.endswith(b"\n") or json.loads(line)["step"] >= step:
                lines.truncate(end)
                return True
            end += len(line)
    return False
