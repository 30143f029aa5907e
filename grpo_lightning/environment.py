"""What a run was made with: the command, the device, the versions."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("grpo-lightning", "torch", "lightning", "transformers", "peft")


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """A record of this process in JSON's own types.

    Args:
        device: that the run is on.
        world_size: processes of the run.
    """
    program = Path(sys.argv[0]).name
    return {
        # As `python -m grpo_lightning` it is the same program.
        "command": ["grpo" if program == "__main__.py" else program, *sys.argv[1:]],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
    }


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
