"""Functions that a worker's process imports."""

from __future__ import annotations

import os
import signal
import sys
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


def stop_once(mark: str, text: str = "") -> str:
    """Stop the child, or with ``mark`` ending in ``parent`` the process above it; the second time, go on.

    With ``mark`` ending in ``always``, stop every time. Each time is a line in the file.
    """
    path = Path(mark)
    times = path.read_text().count("\n") if path.exists() else 0
    with path.open("a") as file:
        file.write("\n")
    if times == 0 or mark.endswith("always"):
        os.kill(os.getppid() if mark.endswith("parent") else os.getpid(), signal.SIGSTOP)
    return f"went on {len(text)}"


def fail_to_start() -> None:
    raise ImportError("no such library")


def on_a_slow_machine() -> None:
    """Let the known piece of work look 10 times as slow as it is."""
    sys.modules["__main__"].ADDITIONS_PER_S *= 10  # type: ignore[attr-defined]


def work(additions: int) -> str:
    total = 0
    for number in range(additions):
        total += number
    return "done"
