"""What a run was made with: the command, the device, the versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("grpo-lightning", "torch", "lightning", "transformers", "peft")


SECRET = r"(?:[\w.-]*[_.-])?(?:api)?(?:key|token|password|secret)"
"""Names of options whose values nobody else should read; ``max_tokens`` is none."""


def environment(device: torch.device, world_size: int, arguments: Sequence[str]) -> dict[str, Any]:
    """A record of this process in JSON's own types.

    Args:
        device: that the run is on.
        world_size: processes of the run.
        arguments: the command line of ``grpo``; passwords and the like in them are not recorded.
    """
    return {
        "command": ["grpo", *without_secrets(arguments)],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
    }


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments with ``***`` for the values of keys, tokens and passwords, given as options or within YAML."""
    shown = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if re.fullmatch(SECRET, before, re.IGNORECASE) and before.startswith("--"):
            shown.append("***")
        else:
            shown.append(
                re.sub(rf"(?<![\w.])({SECRET}[\"']?\s*[:=]\s*)[^\s,}}]+", r"\1***", argument, flags=re.IGNORECASE)
            )
    return shown


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
