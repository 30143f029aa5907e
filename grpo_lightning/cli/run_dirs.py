"""Run directories: ``runs/<config>/<time>-<id>/`` with ``config.yaml``, events, ``checkpoints/`` and ``policy/``."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from grpo_lightning.cli.checkpoints import run_of_checkpoint
from grpo_lightning.cli.launch import agreed, is_first_process
from grpo_lightning.errors import ConfigError
from grpo_lightning.stored import UNFINISHED_TEST

BEGINNING = (
    "config.yaml", "environment.json", "events.out.tfevents.*", "hparams.yaml", "metrics.csv", UNFINISHED_TEST,
)  # fmt: skip
"""Files that a run writes before its first step."""

REPRODUCED = "reproduced"
"""The folder of a run's reproductions, in the run."""

TAKEN_FROM = "taken_from.txt"
"""The file in a run's ``warm_start`` that says which other run's it is; one that was trained here has none."""


class RunDir:
    """The directory of one run.

    Args:
        path: an existing directory, or one to make.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        absolute = path.absolute()
        self._missing = [folder for folder in (absolute, *absolute.parents) if not folder.exists()]
        self._is_new = bool(self._missing) or (absolute.is_dir() and not any(absolute.iterdir()))

    def make(self) -> None:
        """Make the directory.

        Raises:
            ConfigError: nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be made: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"run_dir: {self.path} cannot be written to")

    def discard(self) -> None:
        """Remove the directory of a start that was refused, and the parents made for it.

        One that was there before stays as it is, and so does one with anything beside :data:`BEGINNING`: a warm start
        that was trained, a checkpoint, what a user's callback wrote. A warm start that was taken from another run goes.
        """
        if not self._is_new or not is_first_process() or not self.path.is_dir():
            return
        taken = self.path / "warm_start"
        is_taken = (taken / TAKEN_FROM).is_file()
        files = [file for file in self.path.rglob("*") if not (file.is_dir() or (is_taken and taken in file.parents))]
        if not all(any(file.match(name) for name in BEGINNING) for file in files):
            return
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for folder in self._missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def run_dir_of(given: str | None, subcommand: str, root: Path, name: str, checkpoint: str | None) -> RunDir:
    """Where a run's files go; the same in all of its processes.

    Args:
        given: ``--run_dir``.
        subcommand: ``fit``, or what evaluates.
        root: the directory of all runs.
        name: the config's name.
        checkpoint: the checkpoint that the run starts from.

    Raises:
        ConfigError: the directory that was given holds another run, or processes cannot agree on a new one.
    """
    run = run_of_checkpoint(checkpoint) if checkpoint else None
    resumed = run if subcommand == "fit" else None
    if given is not None:
        path = Path(given)
        if (path / "config.yaml").is_file() and (resumed is None or resumed.resolve() != path.resolve()):
            resume = ", or continue that one with --ckpt_path and its checkpoint" if subcommand == "fit" else ""
            raise ConfigError(f"run_dir: {given} already holds a run: omit run_dir for a new one{resume}")
        return RunDir(path)
    # A resumed run continues where it was, so that its curves are one. An evaluation of a checkpoint goes into the
    # checkpoint's run, apart from its curves.
    if resumed is not None:
        return RunDir(resumed)
    return RunDir(new_path(root, name) if run is None else new_path(run, subcommand))


def new_path(root: Path, name: str) -> Path:
    """``root/name/<time>-<id>``, which no other run has; under SLURM ``root/name/slurm-<job>-<step>``.

    Raises:
        ConfigError: this is one of several processes that cannot agree on one.
    """
    return Path(agreed(lambda known: str(root / name / (known or _new_name()))))


def config_name(files: Sequence[str], subcommand: str) -> str:
    """What the runs of a config are called: the name of its first file."""
    run = run_of_config(files)
    if run is not None:
        # runs/<name>/<run>/config.yaml: a run from it has the same name. A reproduction is inside the run.
        folder = run.absolute()
        return (folder.parents[1] if folder.parent.name == REPRODUCED else folder).parent.name
    return Path(files[0]).stem if files else subcommand


def run_of_config(files: Sequence[str]) -> Path | None:
    """The run whose own ``config.yaml`` is the first of these files; ``None`` where it is any other config."""
    path = Path(files[0]) if files else Path()
    is_own = re.fullmatch(r"config(-\d+)?", path.stem) is not None and (path.parent / "checkpoints").is_dir()
    return path.parent if is_own else None


def _new_name() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
