"""The checkpoints of runs: is a file one, whose is it, which is the last or the best of a config."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from grpo_lightning.cli.launch import earlier_starts, is_first_process
from grpo_lightning.errors import ConfigError

log = logging.getLogger(__name__)

NAMED = ("last", "best")
"""What ``--ckpt_path`` takes instead of a path: a checkpoint of the config's newest run, or of the run whose own
config it is."""


def run_of_checkpoint(checkpoint: str) -> Path | None:
    """The run dir that a checkpoint lies in; ``None`` where it lies elsewhere."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None


def check_checkpoint(checkpoint: str) -> None:
    """See whether a file is a checkpoint of a run, without loading what is in it.

    Raises:
        ConfigError: it does not exist, is something else, or is truncated.
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
        raise ConfigError(f"ckpt_path: {checkpoint} is not a grpo checkpoint, or it is truncated")


def named_checkpoint(which: str, root: Path, name: str, run: Path | None = None) -> str:
    """The last or the best checkpoint of a run: the one whose own config is used, or else the config's newest.

    Args:
        which: one of :data:`NAMED`.
        root: the directory of all runs.
        name: the config's name, see ``config_name``.
        run: the run whose own config is used, see ``run_of_config``.

    Raises:
        ConfigError: there is none.
    """
    place, pattern = (root / name, "*/checkpoints/last*.ckpt") if run is None else (run, "checkpoints/last*.ckpt")
    found = sorted(place.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"ckpt_path: {f'no run under {place}' if run is None else f'the run {run}'} has "
            f"{'a' if run is None else 'no'} last checkpoint: give the path of one, or start without --ckpt_path"
        )
    last = found[-1]
    check_checkpoint(str(last))
    chosen = last if which == "last" else _best_beside(last)
    if is_first_process():
        log.info("checkpoint: %s (%s)", chosen, which)
    return str(chosen)


def requeued_checkpoint(root: Path, name: str) -> str | None:
    """The last checkpoint of a job that SLURM starts again; ``None`` for any other start.

    Args:
        root: the directory of all runs.
        name: the config's name, see ``config_name``.

    Raises:
        ConfigError: it is not a checkpoint.
    """
    for start in earlier_starts():
        last = root / name / start / "checkpoints" / "last.ckpt"
        if last.is_file():
            check_checkpoint(str(last))
            if is_first_process():
                log.info("checkpoint: %s (of an earlier start of this job)", last)
            return str(last)
    return None


def _best_beside(last: Path) -> Path:
    """The best checkpoint that a run knew of when it wrote its last."""
    import torch

    callbacks = torch.load(last, weights_only=True, map_location="cpu", mmap=True).get("callbacks", {})
    # A ModelCheckpoint of the config has a separate best.
    paths = [state.get("best_model_path") for key, state in callbacks.items() if key.startswith("RunCheckpoint")]
    # The run may have been moved since: the best lies beside the last.
    best = next((last.parent / Path(path).name for path in paths if path), None)
    if best is None or not best.is_file():
        raise ConfigError(
            f"ckpt_path: {last.parent.parent} has no best checkpoint, which a validation with checkpoint.monitor "
            "makes: use --ckpt_path last"
        )
    check_checkpoint(str(best))
    return best
