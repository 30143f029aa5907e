"""Runs of one config with several seeds are one method; here they are found, grouped and named."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.commands.compare.runs import NoRun, Run, is_run, read_run
from grpo_lightning.errors import ConfigError

PLACES = (
    "seed_everything", "run_dir", "ckpt_path", "warm_start", "weights_only", "predictions", "export", "config",
    "checkpoint", "health_check", "summary", "rollouts", "tensorboard",
    "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar", "data.seed",
    "model.init_args.policy.init",
)  # fmt: skip
"""Keys of a config that say where and as which seed, or how it is shown; all others say what was done."""

EXPORTED = ("policy", "policy_best")
"""The folders of a run in which its policy is exported."""
POLICY = "model.init_args.policy.path"
CALLBACKS = "trainer.callbacks"
WATCHERS = (
    "StepProgressBar", "VRAMProfiler", "RolloutLogger", "TensorBoardExtras", "RunSummary", "HealthCheck",
    "PredictionWriter", "PolicyExport", "RunCheckpoint", "LearningRateMonitor",
)  # fmt: skip
"""Callbacks that change nothing about a run."""


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seeds only, or that the user put together under one name."""

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[Any]:
        return [run.seed for run in self.runs]

    @property
    def tested(self) -> list[Run]:
        return [run for run in self.runs if run.test is not None]


def find_methods(arguments: Sequence[str]) -> list[Method]:
    """The methods that ``[NAME=]RUN_DIR ...`` stand for; patterns and folders of runs stand for all runs in them.

    What a pattern matched, here or in the shell, may be a run that stopped before its first curve, or none: with a run
    among the others it is skipped, and a line says so.

    Raises:
        ConfigError: there is no run, a ``NAME=RUN_DIR`` is none, or one is named twice.
    """
    skipped: list[NoRun] = []
    groups: dict[str, list[Run]] = {}
    given: dict[str, str] = {}
    seen: set[Path] = set()
    for argument in arguments:
        name, folders = _folders(argument)
        for folder in folders:
            if folder.resolve() in seen:
                raise ConfigError(f"RUN_DIR: {folder} is given twice")
            seen.add(folder.resolve())
            try:
                run = read_run(folder)
            except NoRun as error:
                if name and folder == Path(argument.partition("=")[2]):
                    raise
                skipped.append(error)
                continue
            key = f"name {name}" if name else str(sorted(what_it_did(run.config, run.folder).items()))
            groups.setdefault(key, []).append(run)
            if name:
                given[key] = name
    if not groups:
        raise skipped[0]
    for reason in skipped:
        print(f"skipped: {str(reason).removeprefix('RUN_DIR: ')}")
    for runs in groups.values():
        runs.sort(key=lambda run: (str(type(run.seed)), run.seed or 0, str(run.folder)))
    names = given | _names({key: runs[0] for key, runs in groups.items() if key not in given}, set(given.values()))
    return [Method(names[key], runs) for key, runs in groups.items()]


def _folders(argument: str) -> tuple[str | None, list[Path]]:
    name, rest = None, argument
    if "=" in argument and not Path(argument).exists():
        name, _, rest = argument.partition("=")
        if not name:
            raise ConfigError(f"RUN_DIR: {argument} has an empty name: write NAME=RUN_DIR")
    matches = sorted(Path(match) for match in glob.glob(rest)) if not Path(rest).exists() else [Path(rest)]
    if not matches:
        raise ConfigError(f"RUN_DIR: there is no folder {rest}")
    folders: list[Path] = []
    for match in matches:
        if is_run(match) or not match.is_dir():
            folders.append(match)
            continue
        # A warm start alone is what a run left that stopped in it.
        inside = sorted(child for child in match.iterdir() if is_run(child) and child.name != "warm_start")
        folders += inside or [match]
    return name, folders


def what_it_did(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config by dotted keys, less its seed and places.

    A policy that a run exported, as a warm start is, stands for what that run did.
    """
    flat = {key: value for key, value in _flat(config).items() if not _is_place(key)}
    flat[CALLBACKS] = [one for one in flat.get(CALLBACKS) or [] if _class_name(one) not in WATCHERS]
    path = Path(str(flat.get(POLICY, "")))
    before = path.parent if is_run(path.parent) else folder / "warm_start"
    if path.name in EXPORTED and is_run(before):
        start = what_it_did(yaml.safe_load((before / "config.yaml").read_text()), before)
        flat[POLICY] = f"{path.name} of a run with {sorted(start.items())}"
    return flat


def label(config: dict[str, Any]) -> str:
    """``GRPO + refinement (distill)``: the algorithm, and what is known to make a method of its own."""
    flat = _flat(config)
    name = str(flat.get("model.class_path", "unknown")).rpartition(".")[2].removesuffix("Module")
    if flat.get("model.init_args.critic"):
        name += f" ({flat['model.init_args.critic']} critic)"
    if flat.get("data.refinement.mode"):
        name += f" + refinement ({flat['data.refinement.mode']})"
    return name


def _names(runs: dict[str, Run], taken: set[str]) -> dict[str, str]:
    """A name for each: its label, and where that is another's too, the keys in which they differ."""
    names: dict[str, str] = {}
    for key, run in runs.items():
        mine = what_it_did(run.config, run.folder)
        others = [
            what_it_did(other.config, other.folder)
            for other in runs.values()
            if label(other.config) == label(run.config)
        ]
        differ = sorted({name for one in others for name in {**one, **mine} if one.get(name) != mine.get(name)})
        told = [f"{name.rpartition('.')[2]} {_short(mine.get(name))}" for name in differ[:3]]
        name = ", ".join([label(run.config), *told])
        while name in taken:
            name += "'"
        taken.add(name)
        names[key] = name
    return names


def _class_name(value: Any) -> str:
    return str(value["class_path"] if isinstance(value, dict) and "class_path" in value else value).rpartition(".")[2]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(_class_name(one) for one in value) or "none"
    return (
        "from another policy" if str(value).startswith(tuple(f"{name} of a run" for name in EXPORTED)) else str(value)
    )


def _is_place(key: str) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in PLACES)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
