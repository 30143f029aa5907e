"""Run directories: ``runs/<config>/<time>-<id>/`` with ``config.yaml``, events, ``checkpoints/`` and ``policy/``."""

from __future__ import annotations

import os
import secrets
import zipfile
from datetime import datetime
from pathlib import Path

from grpo_lightning.errors import ConfigError

RUN_DIR_VARIABLE = "GRPO_RUN_DIR"


def new_run_dir(root: Path, name: str) -> Path:
    """A directory that no other run has. The processes that Lightning starts for other ranks get the first one's.

    Raises:
        ConfigError: other processes of this run were started independently.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        raise ConfigError(
            "run_dir: processes that a launcher such as torchrun or srun starts cannot agree on a new directory: give "
            "--run_dir"
        )
    run_dir = root / name / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    return run_dir


def run_of_checkpoint(checkpoint: str) -> Path | None:
    """The run dir that a checkpoint lies in; ``None`` where it lies elsewhere."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None


def check_checkpoint(checkpoint: str) -> None:
    """See whether a file is a checkpoint of a run, without loading what is in it.

    Raises:
        ConfigError: it is not there, is something else, or is cut off.
    """
    file = Path(checkpoint)
    if not file.is_file():
        raise ConfigError(f"ckpt_path: there is no checkpoint {checkpoint}")
    try:
        with zipfile.ZipFile(file) as parts:  # which is what torch writes, with its table of contents at the end
            names = [name for name in parts.namelist() if name.endswith("/data.pkl")]
            ours = any(b"skipped_steps" in parts.read(name) for name in names)
    except zipfile.BadZipFile:
        ours = False
    except OSError as error:
        raise ConfigError(f"ckpt_path: {checkpoint} cannot be read: {error.strerror}") from error
    if not ours:
        raise ConfigError(f"ckpt_path: {checkpoint} is no checkpoint of grpo, or is cut off")


def make_run_dir(run_dir: Path) -> None:
    """Make a run's directory.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir: {run_dir} cannot be made: {error.strerror}") from error
    if not os.access(run_dir, os.W_OK):
        raise ConfigError(f"run_dir: {run_dir} cannot be written to")


def last_checkpoint(root: Path, name: str) -> str:
    """The newest ``last.ckpt`` among the runs of a config.

    Raises:
        ConfigError: there is none.
    """
    found = sorted((root / name).glob("*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"ckpt_path: no run under {root / name} has a last checkpoint: give the path of one")
    return str(found[-1])
