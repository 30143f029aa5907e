"""One run, read from the files it wrote: config, curves, environment, results of its newest test."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from grpo_lightning.curves import PEAK_PANEL, find, of_panel
from grpo_lightning.curves import Curve as DeclaredCurve
from grpo_lightning.errors import ConfigError

EVENTS = "events.out.tfevents.*"
TEST_RESULTS = "test_results*.jsonl"
TEST_COMMAND = "grpo test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt"


class NoRun(ConfigError):
    """A folder is no run, or one that stopped before its first curve."""


@dataclass(frozen=True)
class Curve:
    """One logged curve.

    Args:
        steps: training steps made when each value was logged.
        values: as logged.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True)
class Tested:
    """What the newest ``grpo test`` of a run's policy found.

    Args:
        correct: by problem. Of a problem that a split holds twice, the second has ``#1`` behind its key, and so on.
        broken: problems on which a verifier broke; they are in ``correct`` too, as not solved.
        checkpoint: that was tested.
    """

    correct: dict[str, float]
    broken: int
    checkpoint: str


@dataclass(frozen=True)
class Run:
    """A run directory's contents.

    Args:
        folder: of the run.
        config: the newest that it was started with.
        curves: by name.
        environment: what it was made with; empty for runs of before that was written.
        test: ``None`` where its policy has not been tested.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    environment: dict[str, Any]
    test: Tested | None

    @property
    def seed(self) -> Any:
        return self.config.get("seed_everything")

    def last(self, name: str) -> float | None:
        """The last value of a curve, ``None`` where there is no such curve."""
        return self.curves[name].last if name in self.curves else None

    def declared(self, curves: Sequence[DeclaredCurve]) -> list[Curve]:
        """What the run logged of some declared curves and families."""
        return [logged for name, logged in self.curves.items() if find(name) in curves]

    @cached_property
    def peak_memory_gib(self) -> float | None:
        """The largest peak of any phase."""
        peaks = [float(curve.values.max()) for curve in self.declared(of_panel(PEAK_PANEL))]
        return max(peaks, default=None)


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        NoRun: it is no folder, or holds no config or no curves.
        ConfigError: it holds an unreadable file.
    """
    if not folder.is_dir():
        raise NoRun(f"RUN_DIR: {folder} is no folder")
    if not is_run(folder):
        raise NoRun(f"RUN_DIR: {folder} is no run, and there is none in it: a run has a config.yaml")
    curves = read_curves(folder)
    if not curves:
        raise NoRun(
            f"RUN_DIR: {folder} has no TensorBoard events with curves: it was stopped early, or trainer.logger is "
            "another than TensorBoard's, such as CSVLogger alone"
        )
    return Run(
        folder, _yaml(_newest(folder, "config", ".yaml")), curves,
        _json(_newest(folder, "environment", ".json")), read_test(folder),
    )  # fmt: skip


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars of a folder's event files, less the values that are not finite, and the curves that have no other.

    Where a step was logged twice, by a resumed run, the later value counts. ``epoch`` is left out: Lightning logs it
    with whatever it logs, evaluations among it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob(EVENTS)):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "epoch"]
    training = [name for name in names if not _of_evaluation(name)]
    trained = sorted((event.wall_time, event.step) for name in training for event in events.Scalars(name))
    curves = {}
    for name in names:
        by_step: dict[int, float] = {}
        for event in sorted(events.Scalars(name), key=lambda event: event.wall_time):
            by_step[_steps_made(event, trained) if _of_evaluation(name) else event.step + 1] = event.value
        steps = [step for step in sorted(by_step) if np.isfinite(by_step[step])]
        if steps:
            curves[name] = Curve(np.array(steps, dtype=float), np.array([by_step[step] for step in steps]))
    return curves


def _of_evaluation(name: str) -> bool:
    return name.startswith(("val/", "test/", "memory/validation_", "memory/test_"))


def _steps_made(event: Any, trained: Sequence[tuple[float, int]]) -> int:
    """Training steps made when an evaluation was logged.

    Lightning counts a step only after the validation that follows it: it logs an evaluation at the number of steps
    made, and at one less behind a step. What training had logged by then tells the two apart.

    Args:
        event: of the evaluation.
        trained: wall time and step of all that training logged, in order.
    """
    before = bisect_right(trained, (event.wall_time, math.inf))
    made = trained[before - 1][1] + 1 if before else 0
    return int(min(max(made, event.step), event.step + 1))


def read_test(folder: Path) -> Tested | None:
    """The newest test results under ``<run>/test``, of all ranks together."""
    found = sorted((folder / "test").rglob("test_results.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    place = found[-1].parent
    correct: dict[str, float] = {}
    broken = 0
    for file in sorted(place.glob(TEST_RESULTS)):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            try:
                record = json.loads(line)
                key, solved = str(record["problem"]), record["correct"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file} line {number} is no result of a test: run grpo test again") from error
            repeats = 0
            while (unique := f"{key}#{repeats}" if repeats else key) in correct:
                repeats += 1
            correct[unique] = float(bool(solved))
            broken += solved is None
    config = place / "config.yaml"
    checkpoint = _yaml(config).get("ckpt_path") if config.is_file() else None
    return Tested(correct, broken, str(checkpoint or "unknown")) if correct else None


def _newest(folder: Path, stem: str, ending: str) -> Path:
    """``config.yaml``, or the last of ``config-2.yaml``, ``config-3.yaml`` of a run that was resumed."""
    numbered = {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{stem}-[0-9]*{ending}")}
    return numbered[max(numbered)] if numbered else folder / f"{stem}{ending}"


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not readable as a config: {str(error).splitlines()[0]}") from error


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}
