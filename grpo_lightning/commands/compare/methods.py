"""Find runs and group them into named methods: runs that differ only in their seeds are one method."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from grpo_lightning.commands.compare.runs import NotARunError, Run, is_run, read_config, read_run, test_folders
from grpo_lightning.commands.compare.statistics import Array
from grpo_lightning.errors import ConfigError

IGNORED_KEYS = (
    "seed_everything", "run_dir", "ckpt_path", "warm_start", "reuse_warm_start", "weights_only", "predictions",
    "export", "config", "checkpoint", "health_check", "summary", "rollouts", "tensorboard",
    "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar", "data.seed",
    "model.init_args.policy.init",
)  # fmt: skip
"""Config keys that do not define a method: seeds, paths and display. All other keys do."""

EXPORT_FOLDERS = ("policy", "policy_best")
"""The folders of a run to which its policy is exported."""
POLICY = "model.init_args.policy.path"
CALLBACKS = "trainer.callbacks"
PASSIVE_CALLBACKS = (
    "StepProgressBar", "VRAMProfiler", "RolloutLogger", "TensorBoardExtras", "RunSummary", "HealthCheck",
    "PredictionWriter", "Cost", "PolicyExport", "RunCheckpoint", "LearningRateMonitor",
)  # fmt: skip
"""Callbacks that do not affect training."""


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seeds, or that the user grouped under one name."""

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[Any]:
        return [run.seed for run in self.runs]

    @property
    def repeated_seeds(self) -> list[Any]:
        """Seeds of more than one run."""
        return [seed for seed, runs in Counter(self.seeds).items() if runs > 1]

    @property
    def is_graded(self) -> bool:
        """Whether rewards do not tell right from wrong."""
        return any(run.reward_alone for run in self.runs)

    @property
    def tested(self) -> list[Run]:
        return [run for run in self.runs if run.test is not None]


def find_methods(arguments: Sequence[str]) -> list[Method]:
    """Find the methods given by arguments of the form ``[NAME=]RUN_DIR``.

    A glob pattern or a folder of runs selects all runs in it. A pattern, here or in the shell, may match a run that
    stopped before its first curve, or something that is not a run: it is skipped with a message, provided that there is
    at least one run.

    A run that repeats another one, as a reproduction or a copy does, is skipped with a message too. Further runs of one
    seed are kept, with a warning.

    Raises:
        ConfigError: there is no run, the folder of a ``NAME=RUN_DIR`` is not a run, or a run is given twice.
    """
    skipped: list[NotARunError] = []
    groups: dict[str, list[Run]] = {}
    names_given: dict[str, str] = {}
    seen: set[Path] = set()
    for argument in arguments:
        name, folders = _folders(argument)
        for folder in folders:
            if folder.resolve() in seen:
                raise ConfigError(f"RUN_DIR: {folder} is given twice")
            seen.add(folder.resolve())
            try:
                run = read_run(folder)
            except NotARunError as error:
                if name and folder == Path(argument.partition("=")[2]).expanduser():
                    raise
                skipped.append(error)
                continue
            key = f"name {name}" if name else str((run.is_trained, sorted(recipe(run.config, run.folder).items())))
            if run.test is None and test_folders(folder):
                print(f"not tested: the test of {folder} was interrupted, or has not ended: run grpo test again")
            groups.setdefault(key, []).append(run)
            if name:
                names_given[key] = name
    if not groups:
        raise skipped[0]
    for reason in skipped:
        print(f"skipped: {str(reason).removeprefix('RUN_DIR: ')}")
    for runs in groups.values():
        runs.sort(key=lambda run: (str(type(run.seed)), run.seed or 0, run.test is None, str(run.folder)))
        repeats = {second.folder: first.folder for first, second in combinations(runs, 2) if _is_repeat(first, second)}
        for repeat, original in repeats.items():
            print(f"skipped: {repeat} has the seed and the curves of {original}: a copy or a reproduction")
        runs[:] = [run for run in runs if run.folder not in repeats]
    unnamed = {key: runs[0] for key, runs in groups.items() if key not in names_given}
    names = names_given | _names(unnamed, set(names_given.values()))
    methods = [Method(names[key], runs) for key, runs in groups.items()]
    for method in methods:
        for seed in method.repeated_seeds:
            print(f"warning: several runs of {method.name} have the seed {seed}: they are not independent")
    return methods


def _is_repeat(first: Run, second: Run) -> bool:
    """Whether two runs of one seed and recipe learned the same; what they took of time and memory may differ."""
    if first.seed != second.seed or not first.learned or first.learned.keys() != second.learned.keys():
        return False
    if first.test is not None and second.test is not None and first.test.correct != second.test.correct:
        return False
    same_curves = all(
        np.array_equal(curve.steps, second.learned[name].steps)
        and np.array_equal(curve.values, second.learned[name].values)
        for name, curve in first.learned.items()
    )
    return same_curves and recipe(first.config, first.folder) == recipe(second.config, second.folder)


def _folders(argument: str) -> tuple[str | None, list[Path]]:
    name, rest = None, argument
    if "=" in argument and not Path(argument).exists():
        name, _, rest = argument.partition("=")
        if not name:
            raise ConfigError(f"RUN_DIR: {argument} has an empty name: write NAME=RUN_DIR")
        rest = str(Path(rest).expanduser())  # the shell leaves the ~ of NAME=~/RUN_DIR
    matches = sorted(Path(match) for match in glob.glob(rest)) if not Path(rest).exists() else [Path(rest)]
    if not matches:
        raise ConfigError(f"RUN_DIR: the folder {rest} does not exist")
    folders: list[Path] = []
    for match in matches:
        if is_run(match) or not match.is_dir():
            folders.append(match)
            continue
        # A folder with only a warm start belongs to a run that stopped during it.
        inside = sorted(child for child in match.iterdir() if is_run(child) and child.name != "warm_start")
        folders += inside or [match]
    return name, folders


def recipe(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the part of a config that defines its method, by dotted keys: without seeds, paths and display.

    If the initial policy was exported by another run, such as a warm start, it is replaced with that run's recipe.
    """
    flat = {key: value for key, value in _flat(config).items() if not _is_ignored(key)}
    callbacks = flat.get(CALLBACKS) or []
    flat[CALLBACKS] = [callback for callback in callbacks if _class_name(callback) not in PASSIVE_CALLBACKS]
    path = Path(str(flat.get(POLICY, "")))
    source = path.parent if is_run(path.parent) else folder / "warm_start"
    if path.name in EXPORT_FOLDERS and is_run(source):
        start = recipe(read_config(source / "config.yaml"), source)
        flat[POLICY] = f"{path.name} of a run with {sorted(start.items())}"
    return flat


def label(run: Run) -> str:
    """Name a method by its algorithm and main options, such as ``GRPO + refinement (distill)``."""
    if not run.is_trained:
        return "without training"
    flat = _flat(run.config)
    name = str(flat.get("model.class_path", "unknown")).rpartition(".")[2].removesuffix("Module")
    if flat.get("model.init_args.critic"):
        name += f" ({flat['model.init_args.critic']} critic)"
    if flat.get("data.refinement.mode"):
        name += f" + refinement ({flat['data.refinement.mode']})"
    return name


def _names(runs: dict[str, Run], taken: set[str]) -> dict[str, str]:
    """Name each run by its label, followed by the options in which runs with the same label differ."""
    names: dict[str, str] = {}
    for key, run in runs.items():
        own = recipe(run.config, run.folder)
        same_label = [
            recipe(candidate.config, candidate.folder) for candidate in runs.values() if label(candidate) == label(run)
        ]
        differing = sorted(
            {option for other in same_label for option in {**other, **own} if other.get(option) != own.get(option)}
        )
        options = [f"{option.rpartition('.')[2]} {_short(own.get(option))}" for option in differing[:3]]
        name = ", ".join([label(run), *options])
        while name in taken:
            name += "'"
        taken.add(name)
        names[key] = name
    return names


def _class_name(value: Any) -> str:
    return str(value["class_path"] if isinstance(value, dict) and "class_path" in value else value).rpartition(".")[2]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(_class_name(item) for item in value) or "none"
    exported = str(value).startswith(tuple(f"{name} of a run" for name in EXPORT_FOLDERS))
    return "from another policy" if exported else str(value)


def _is_ignored(key: str) -> bool:
    return any(key == ignored or key.startswith(f"{ignored}.") for ignored in IGNORED_KEYS)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def results_SQ(runs: Sequence[Run], problems: Sequence[str]) -> Array:
    """Return the results of the tested runs: 1 if run ``S`` solved problem ``Q``, else 0."""
    return np.array([[run.test.correct[key] for key in problems] for run in runs if run.test is not None])
