"""The files of runs: written whole, and read again: rollouts without those of repeated steps, and any JSONL."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from grpo_lightning.errors import ConfigError

FOLDER = re.compile(r"(\d+)-from-step-(\d+)")
JSON_COLUMNS = ("prompt", "answer", "metadata", "rewards_by_verifier", "info")
"""Columns that the Parquet format stores as JSON strings."""

REQUIRED: dict[str, Any] = {
    "step": int, "id": str, "prompt": list, "completion": str, "correct": bool, "reward": (int, float, type(None)),
}  # fmt: skip
"""What every record has, and the type it must have to be read."""

UNFINISHED_TEST = "test_unfinished.txt"
"""The file in the folder of a test that has not ended, or was ended early."""


def refuse_folder_of_runs(folder: Path, option: str) -> None:
    """Refuse the parent folder of runs, where a run is needed.

    Raises:
        ConfigError: it holds runs and is not one; the newest is named.
    """
    runs = sorted(config.parent for config in folder.glob("*/config.yaml"))
    if runs and not (folder / "config.yaml").exists():
        raise ConfigError(f"{option}: {folder} is a folder of runs: give one of them, such as {runs[-1]}")


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Give a path beside a file to write to, then rename it to the file: a file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    yield part
    part.replace(file)


def read_jsonl(file: Path, drop_incomplete: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line that is not blank.

    Args:
        file: a JSONL file in UTF-8, with or without a byte order mark.
        drop_incomplete: omit a last line without a line break, which an interrupted run leaves.

    Raises:
        ConfigError: a line is not JSON, or the file is not UTF-8 text.
        OSError: the file cannot be read.
    """
    try:
        # Not splitlines(): it also splits at characters that a JSON string may hold, such as U+2028.
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if drop_incomplete and not line.endswith("\n"):
                    return
                if line.strip():
                    yield number, _parsed(line, f"line {number} of {file}")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text ({error}): convert it") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error})") from error


def newest(run_dir: Path, stem: str, suffix: str) -> Path:
    """Return ``config.yaml``, or for a resumed run the last of ``config-2.yaml``, ``config-3.yaml`` and so on.

    Args:
        run_dir: the run directory.
        stem: ``config`` or ``environment``.
        suffix: the suffix, with its dot.
    """
    pattern = re.compile(rf"{stem}-(\d+){re.escape(suffix)}")
    numbered = {int(match[1]): file for file in run_dir.glob("*") if (match := pattern.fullmatch(file.name))}
    return numbered[max(numbered)] if numbered else run_dir / f"{stem}{suffix}"


def read_rollouts(run_dir: Path, first_step: int = 0, last_step: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's ``rollouts`` folder, one step after the other.

    Each start of a run has a folder, named after its number and its first step. If a later start repeated some steps,
    as with older versions, their older records are omitted. So is an incomplete last line, which an interrupted run
    leaves.

    Args:
        run_dir: the run directory.
        first_step: omit earlier steps.
        last_step: omit later steps; ``None`` for no limit.

    Raises:
        ConfigError: the run has no logged rollouts, or a line of a file is not a record.
    """
    root = run_dir / "rollouts"
    starts = sorted(
        (int(match[1]), int(match[2]), folder) for folder in root.glob("*") if (match := FOLDER.fullmatch(folder.name))
    )
    if not starts:
        raise ConfigError(
            f"{run_dir} has no logged rollouts; give the directory of a run with rollouts.enabled set to true"
        )
    for number, (_, _, folder) in enumerate(starts):
        first_repeated = min((start for _, start, _ in starts[number + 1 :]), default=None)
        for record in _of_start(folder):
            step = record["step"]
            in_range = step >= first_step and (last_step is None or step <= last_step)
            if in_range and (first_repeated is None or step < first_repeated):
                yield record


def _of_start(folder: Path) -> Iterator[dict[str, Any]]:
    """Merge the files of all ranks. Each rank writes its steps in order, and names a file after its first step."""
    by_rank: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: (len(file.name), file.name)):
        by_rank.setdefault(file.name.partition("-")[0], []).append(file)
    ranks = (chain.from_iterable(map(_checked_records, shards)) for shards in by_rank.values())
    return heapq.merge(*ranks, key=itemgetter("step"))


def _checked_records(file: Path) -> Iterator[dict[str, Any]]:
    for where, record in _records(file):
        if not isinstance(record, dict):
            raise ConfigError(f"{where} is not a rollout record: it holds {record!r}")
        wrong = [name for name, kind in REQUIRED.items() if not isinstance(record.get(name, ...), kind)]
        if wrong:
            value = f"has {wrong[0]}: {record[wrong[0]]!r}" if wrong[0] in record else f"has no {wrong[0]}"
            raise ConfigError(f"{where} {value}: it is not a rollout record")
        yield record


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each record is, and the record."""
    if file.suffix == ".parquet":
        import pyarrow.parquet

        for number, record in enumerate(pyarrow.parquet.read_table(file).to_pylist(), start=1):
            plain = {name: json.loads(record[name]) for name in JSON_COLUMNS if name in record}
            yield f"row {number} of {file}", record | plain
    elif file.suffix == ".jsonl":
        for number, record in read_jsonl(file, drop_incomplete=True):
            yield f"line {number} of {file}", record


def read_record(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file that a run wrote, such as ``environment.json``.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}): restore it, or omit this run") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{file} must hold a JSON object, not {record!r}: restore it, or omit this run")
    return record
