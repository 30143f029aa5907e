"""Clocks and peaks of memory, and numbers with their spread.

Torch is imported where it is used: Linux hands a parent's peak of resident memory down to its children, so a script
that measures in processes of their own must not load it itself.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20


def now(device: torch.device) -> float:
    """Seconds: of the processor's time on the CPU, of the wall (with the work done) on CUDA."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


class Peak:
    """The peak of memory since :meth:`reset`: resident memory on the CPU, allocated memory on CUDA; in MiB.

    On the CPU, freed memory must go back to the system at once to be counted right: see :data:`MALLOC`. That costs
    time, so it is measured in runs of its own, and elsewhere all of this does nothing.
    """

    def __init__(self, device: torch.device, measuring: bool) -> None:
        self.cuda = device.type == "cuda"
        self.measuring = measuring

    def held(self) -> float:
        """What is held now."""
        if not self.measuring:
            return 0.0
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated() / MIB
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    def reset(self) -> None:
        if not self.measuring:
            return
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if not self.measuring:
            return 0.0
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated() / MIB
        return _status("VmHWM")


MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment of a process whose memory is measured."""


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (least to most)``."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine(device: torch.device) -> str:
    """Device, threads and versions, in one line."""
    import lightning
    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} thread(s)"
    return (
        f"{name}{threads}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, lightning {lightning.__version__}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
