"""What a run was made with: the command, the device, the versions."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import grpo_lightning
from grpo_lightning.cli.confidential import without_secrets
from grpo_lightning.cli.import_folders import RECORDED_AS, import_folders

PACKAGES = ("grpo-lightning", "torch", "lightning", "transformers", "peft")


def environment(device: torch.device, world_size: int, arguments: Sequence[str]) -> dict[str, Any]:
    """A record of this process in JSON's own types.

    Args:
        device: that the run is on.
        world_size: processes of the run.
        arguments: the command line of ``grpo``; passwords and the like in them are not recorded.
    """
    return {
        "command": ["grpo", *without_secrets(arguments)],
        "folder": os.getcwd(),
        RECORDED_AS: import_folders(arguments),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        **software(),
    }


def software() -> dict[str, Any]:
    """Versions, commits and the platform of this process."""
    places = {"grpo-lightning": Path(grpo_lightning.__file__), "working folder": Path.cwd()}
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commits": {name: commit_of(path) for name, path in places.items()},
        "platform": platform.platform(),
    }


def commit_of(path: Path) -> str | None:
    """The commit of the git checkout that a file or folder belongs to, with a hash of its uncommitted changes.

    ``None`` without git, outside of a checkout, and for a file that git does not track, such as an installed wheel's.
    Untracked files count as nothing.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        return None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "HEAD")
    if commit is None:
        return None
    return commit.strip() + (f" with changes {hashlib.sha256(changes.encode()).hexdigest()[:12]}" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; ``None`` where it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{device.type}: {names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
