"""The rollouts that a run has logged, less those of steps that were made again after a break."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_lightning.errors import ConfigError

FOLDER = re.compile(r"(\d+)-from-step-(\d+)")
JSON_COLUMNS = ("prompt", "answer", "metadata", "rewards_by_verifier")
"""Written as JSON in a string by the Parquet format."""


def read_rollouts(run_dir: Path, first_step: int = 0, last_step: int | None = None) -> Iterator[dict[str, Any]]:
    """The records of a run's ``rollouts`` folder, in no particular order.

    Each start of a run has a folder, named by its number and the first step in it. What a folder holds of the first
    steps of later ones, and of the steps behind them, was made again, and is left out. So is a last line that a run
    was stopped in the middle of.

    Args:
        run_dir: of the run.
        first_step: leave out the steps before it.
        last_step: leave out the steps behind it.

    Raises:
        ConfigError: the run has logged no rollouts, or a line of a file is no record.
    """
    root = run_dir / "rollouts"
    starts = sorted(
        (int(found[1]), int(found[2]), folder) for folder in root.glob("*") if (found := FOLDER.fullmatch(folder.name))
    )
    if not starts:
        raise ConfigError(
            f"{run_dir} holds no logged rollouts: give the directory of a run whose rollouts.enabled is true"
        )
    for place, (_, _, folder) in enumerate(starts):
        made_again = min((start for _, start, _ in starts[place + 1 :]), default=None)
        for file in sorted(folder.iterdir()):
            for record in _records(file):
                step = record["step"]
                within = step >= first_step and (last_step is None or step <= last_step)
                if within and (made_again is None or step < made_again):
                    yield record


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        for record in pyarrow.parquet.read_table(file).to_pylist():
            yield record | {name: json.loads(record[name]) for name in JSON_COLUMNS}
    elif file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith("\n"):
                    return
                try:
                    record = json.loads(line)
                    record["step"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(f"line {number} of {file} is no record of a rollout ({error!r})") from error
                yield record
