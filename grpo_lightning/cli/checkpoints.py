"""The checkpoints of runs: is a file one, whose is it, which is the last or the best of a config."""

from __future__ import annotations

import zipfile
from pathlib import Path

from grpo_lightning.errors import ConfigError

NAMED = ("last", "best")
"""What ``--ckpt_path`` takes instead of a path: a checkpoint of the config's newest run."""


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


def named_checkpoint(which: str, root: Path, name: str) -> str:
    """The last or the best checkpoint of the newest run of a config.

    Args:
        which: one of :data:`NAMED`.
        root: the directory of all runs.
        name: the config's name, see ``config_name``.

    Raises:
        ConfigError: there is none.
    """
    found = sorted((root / name).glob("*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"ckpt_path: no run under {root / name} has a last checkpoint: give the path of one, or start without "
            "--ckpt_path"
        )
    last = found[-1]
    check_checkpoint(str(last))
    return str(last if which == "last" else _best_beside(last))


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
