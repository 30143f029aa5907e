"""Read a run from the files it wrote: config, curves, environment and the results of its newest test."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from grpo_lightning.curves import PEAK_PANEL, find, of_panel
from grpo_lightning.curves import Curve as DeclaredCurve
from grpo_lightning.curves.learning import LEARNING
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.stored import UNFINISHED_TEST, newest, read_jsonl, read_record, read_rollouts

EVENTS = "events.out.tfevents.*"
TEST_RESULTS = "test_results*.jsonl"
FIRST_ROLLOUTS = 512
TEST_COMMAND = "grpo test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt"


class NotARunError(ConfigError):
    """The folder is not a run, or is a run that stopped before its first curve."""


@dataclass(frozen=True)
class Curve:
    """One logged curve.

    Args:
        steps: number of training steps completed when each value was logged.
        values: the logged values.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True)
class TestResults:
    """The results of the newest finished ``grpo test`` of a run's policy.

    Args:
        correct: 1 or 0 by problem. If a split contains a problem twice, the second key ends in ``#1``, and so on.
        errors: number of problems on which a verifier failed; in ``correct`` they count as not solved.
        checkpoint: the checkpoint that was tested.
        reward_alone: whether some rewards do not tell right from wrong, so that ``correct`` says nothing.
        reward: the mean reward; ``None`` if none was written, as by older versions.
    """

    correct: dict[str, float]
    errors: int
    checkpoint: str
    reward_alone: bool = False
    reward: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of the problems that were solved."""
        return sum(self.correct.values()) / len(self.correct)


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Args:
        folder: the run directory.
        config: the newest config with which the run was started.
        curves: the logged curves by name.
        environment: device, versions and command of the run; empty if the run wrote none, as older versions did.
        test: the test results; ``None`` if the policy has not been tested.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    environment: dict[str, Any]
    test: TestResults | None

    @property
    def seed(self) -> Any:
        return self.config.get("seed_everything")

    @property
    def is_trained(self) -> bool:
        """Whether the run took a training step; ``grpo test`` of a model as it is takes none."""
        return not all(_is_evaluation(name) for name in self.curves)

    @property
    def steps(self) -> int:
        """The number of training steps completed."""
        return int(max(curve.steps[-1] for curve in self.curves.values())) if self.is_trained else 0

    def last(self, name: str) -> float | None:
        """Return the last value of a curve; ``None`` if the run does not have the curve."""
        return self.curves[name].last if name in self.curves else None

    def declared(self, curves: Sequence[DeclaredCurve]) -> list[Curve]:
        """Return the logged curves that belong to the given declarations, families included."""
        return [logged for name, logged in self.curves.items() if find(name) in curves]

    @property
    def learned(self) -> dict[str, Curve]:
        """The curves of what was learned, which a repeat of the run has too: none of time or memory."""
        names = {curve for section in LEARNING.values() for curve in section}
        return {name: curve for name, curve in self.curves.items() if find(name) in names}

    @cached_property
    def reward_alone(self) -> bool:
        """Whether rewards do not tell right from wrong, in its test or among its first rollouts, as far as known."""
        if self.test is not None and self.test.reward_alone:
            return True
        with suppress(ConfigError, ImportError):  # none were logged, or as Parquet, which is not installed
            return any(record.get("reward_alone") for record in islice(read_rollouts(self.folder), FIRST_ROLLOUTS))
        return False

    @cached_property
    def peak_memory_gib(self) -> float | None:
        """The highest peak of any phase; ``None`` if no peak was logged."""
        peaks = [float(curve.values.max()) for curve in self.declared(of_panel(PEAK_PANEL))]
        return max(peaks, default=None)


def is_run(folder: Path) -> bool:
    """Whether the folder is a run directory, which has a ``config.yaml``."""
    return (folder / "config.yaml").is_file()


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        NotARunError: it is not a folder, or it has no config or no curves.
        ConfigError: a file in it cannot be read.
    """
    if not folder.is_dir():
        raise NotARunError(f"RUN_DIR: {folder} is not a folder")
    if not is_run(folder):
        raise NotARunError(
            f"RUN_DIR: {folder} is not a run and contains none; give a run directory, which has a config.yaml"
        )
    curves = read_curves(folder)
    if not curves:
        raise NotARunError(
            f"RUN_DIR: {folder} has no TensorBoard events with curves: it was stopped early, or trainer.logger does "
            "not include a TensorBoardLogger"
        )
    return Run(
        folder, read_config(newest(folder, "config", ".yaml")), curves,
        _json(newest(folder, "environment", ".json")), read_test(folder),
    )  # fmt: skip


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read the scalars of a folder's event files. Values that are not finite are dropped, and so are empty curves.

    If a resumed run logged a step twice, the later value counts. ``epoch`` is omitted: Lightning logs it together with
    everything else, evaluations included.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob(EVENTS)):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "epoch"]
    training_names = [name for name in names if not _is_evaluation(name)]
    training = sorted((event.wall_time, event.step) for name in training_names for event in events.Scalars(name))
    curves = {}
    for name in names:
        by_step: dict[int, float] = {}
        for event in sorted(events.Scalars(name), key=lambda event: event.wall_time):
            by_step[_completed_steps(event, training) if _is_evaluation(name) else event.step + 1] = event.value
        steps = [step for step in sorted(by_step) if np.isfinite(by_step[step])]
        if steps:
            curves[name] = Curve(np.array(steps, dtype=float), np.array([by_step[step] for step in steps]))
    return curves


def _is_evaluation(name: str) -> bool:
    return name.startswith(("val/", "test/", "memory/validation_", "memory/test_"))


def _completed_steps(event: Any, training: Sequence[tuple[float, int]]) -> int:
    """Return the number of training steps completed when an evaluation was logged.

    Lightning counts a step only after the validation that follows it. An evaluation directly after a step is therefore
    logged one step early, all others at the number of completed steps. The training events logged before it
    distinguish the two cases.

    Args:
        event: the event of the evaluation.
        training: wall time and step of all training events, in order.
    """
    before = bisect_right(training, (event.wall_time, math.inf))
    completed = training[before - 1][1] + 1 if before else 0
    return int(min(max(completed, event.step), event.step + 1))


def test_folders(folder: Path) -> list[Path]:
    """The folders of a run with test results, finished or not."""
    files = [*folder.glob("test_results.jsonl"), *(folder / "test").rglob("test_results.jsonl")]
    return [file.parent for file in files]


def _began(test_folder: Path) -> tuple[str, float]:
    """Sort key: the time in the folder's name, which a copy keeps, or else when the results were written."""
    written = (test_folder / "test_results.jsonl").stat().st_mtime
    named = re.match(r"\d{8}-\d{6}", test_folder.name)
    return (named[0] if named else f"{datetime.fromtimestamp(written):%Y%m%d-%H%M%S}"), written


def read_test(folder: Path) -> TestResults | None:
    """Read the newest finished test in ``<run>/test``, or of a run that only tests, merged over all ranks."""
    finished = [test for test in test_folders(folder) if not (test / UNFINISHED_TEST).exists()]
    if not finished:
        return None
    test_folder = max(finished, key=_began)
    correct: dict[str, float] = {}
    errors, alone = 0, False
    rewards: list[float] = []
    for file in sorted(test_folder.glob(TEST_RESULTS)):
        for number, record in read_jsonl(file):
            try:
                key, solved = str(record["problem"]), record["correct"]
            except (KeyError, TypeError) as error:
                raise ConfigError(f"{file} line {number} is not a test result; run grpo test again") from error
            repeats = 0
            while (unique := f"{key}#{repeats}" if repeats else key) in correct:
                repeats += 1
            correct[unique] = float(bool(solved))
            errors += solved is None
            alone = alone or bool(record.get("reward_alone"))
            if record.get("reward") is not None:
                rewards.append(float(record["reward"]))
    config = test_folder / "config.yaml"
    checkpoint = read_config(config).get("ckpt_path") if config.is_file() else None
    reward = sum(rewards) / len(rewards) if rewards else None
    return TestResults(correct, errors, str(checkpoint or "unknown"), alone, reward) if correct else None


def read_config(path: Path) -> dict[str, Any]:
    """Read a config that a run saved.

    Raises:
        ConfigError: it is not YAML with keys.
    """
    try:
        return dict(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a config: {first_line(error)}") from error


def _json(path: Path) -> dict[str, Any]:
    return read_record(path) if path.is_file() else {}
