"""Clocks, peak memory, and numbers with their spread.

Torch is imported inside the functions: on Linux, children inherit their parent's peak of resident memory, so a script
that measures in subprocesses must not import torch itself.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20


def now(device: torch.device) -> float:
    """Return the time in seconds: process time on the CPU, wall time after all queued work on CUDA."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


class Peak:
    """Peak memory in MiB since :meth:`reset`: resident memory on the CPU, allocated memory on CUDA.

    On the CPU, freed memory must return to the system immediately to be counted correctly: see :data:`MALLOC`. This
    costs time, so memory is measured in separate runs; with ``measuring=False`` all methods do nothing.
    """

    def __init__(self, device: torch.device, measuring: bool) -> None:
        self.cuda = device.type == "cuda"
        self.measuring = measuring

    def held(self) -> float:
        """Return the memory in use now."""
        if not self.measuring:
            return 0.0
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated() / MIB
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    def reset(self) -> None:
        """Start a new peak."""
        if not self.measuring:
            return
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """Return the peak since the last reset."""
        if not self.measuring:
            return 0.0
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated() / MIB
        return _status("VmHWM")


MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment variables for a process whose memory is measured."""


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format values as ``median (min to max)``."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine(device: torch.device) -> str:
    """Describe device, threads and versions in one line."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} thread(s)"
    return (
        f"{name}{threads}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}, lightning {version('lightning')}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
