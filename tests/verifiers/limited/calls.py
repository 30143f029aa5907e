"""Functions that a worker's process imports."""

from __future__ import annotations

import os
import signal
from pathlib import Path

_WARM: list[str] = []


def warm_up() -> None:
    _WARM.append("set up")


def add(text: str) -> list[str]:
    _WARM.append(text)
    return _WARM


def kill_once(mark: str) -> str:
    """Kill the child, or with ``mark`` ending in ``parent`` the whole process; the second time, survive."""
    if Path(mark).exists():
        return "survived"
    Path(mark).touch()
    os.kill(os.getppid() if mark.endswith("parent") else os.getpid(), signal.SIGKILL)
    signal.pause()
    return "never"


def fail_to_start() -> None:
    raise ImportError("no such library")
