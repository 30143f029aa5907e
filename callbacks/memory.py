"""Reading memory: what a device's allocator, or the process, holds now and has held at the most."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes; on the CPU ``reserved`` is 0: torch has no caching allocator there."""

    allocated: int
    reserved: int = 0

    @property
    def fragmentation(self) -> float:
        """The share of the reserved memory that is not allocated."""
        return (self.reserved - self.allocated) / self.reserved if self.reserved else 0.0


class Meter(Protocol):
    """Measures one device. ``how`` says in words what is measured."""

    how: str

    def now(self) -> Memory: ...

    def peak(self) -> Memory:
        """The most since the last ``reset_peak``."""
        ...

    def reset_peak(self) -> None: ...


class CudaMeter:
    """Torch's caching allocator on one CUDA device. Its peak counters are reset: nobody else should rely on them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.how = f"{torch.cuda.get_device_name(device)}, allocated by torch"

    def now(self) -> Memory:
        return Memory(torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device))

    def peak(self) -> Memory:
        return Memory(torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device))

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


class ResidentMeter:
    """The resident memory of this process, whose high-water mark Linux lets one reset (``man 5 proc_pid_clear_refs``).

    Pages that the C library keeps after they were freed count as held.
    """

    how = "CPU, resident memory of the process (VmHWM, reset at every phase)"

    def now(self) -> Memory:
        return self._status(b"VmRSS:")

    def peak(self) -> Memory:
        return self._status(b"VmHWM:")

    def reset_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def _status(self, name: bytes) -> Memory:
        text = Path("/proc/self/status").read_bytes()
        start = text.index(name) + len(name)
        return Memory(int(text[start : text.index(b"kB", start)]) * 1024)


class HighWaterMeter:
    """The resident memory of this process where the system cannot reset its peak."""

    how = "CPU, resident memory of the process at its highest so far (this system cannot reset it: it never goes down)"

    def now(self) -> Memory:
        return self.peak()

    def peak(self) -> Memory:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

    def reset_peak(self) -> None:
        """Does nothing: the high-water mark of a process cannot be reset."""


def meter_of(device: torch.device) -> Meter:
    """What measures a device here."""
    if device.type == "cuda":
        return CudaMeter(device)
    meter = ResidentMeter()
    try:
        meter.reset_peak()
        meter.peak()
    except (OSError, ValueError):
        return HighWaterMeter()
    return meter


def biggest_tensors(count: int, device: torch.device, names: Mapping[int, str]) -> list[str]:
    """The ``count`` biggest live tensors on a device, one table row each; tensors that share memory count once.

    Tensors that only autograd holds are not Python objects, and are not listed. Fake tensors do not count.

    Args:
        count: how many.
        device: where they live.
        names: names of tensors by address, where they have one.
    """
    by_address: dict[int, tuple[int, Tensor]] = {}
    for thing in gc.get_objects():
        # Not isinstance: it runs code of lazy proxies among the objects.
        kind = type(thing)
        if not issubclass(kind, Tensor) or issubclass(kind, FakeTensor):
            continue
        if thing.device.type == device.type and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            held = by_address.get(storage.data_ptr())
            if storage.nbytes() and (held is None or thing.numel() > held[1].numel()):
                by_address[storage.data_ptr()] = (storage.nbytes(), thing)
    biggest = sorted(by_address.items(), key=lambda entry: -entry[1][0])[:count]
    return [
        f"| {size / 2**20:.2f} | {' x '.join(map(str, tensor.shape)) or 'scalar'} | {tensor.dtype} "
        f"| {names.get(address, '')} |"
        for address, (size, tensor) in biggest
    ]
