"""How glibc's allocator is set up for a run on a CPU, so that freed memory returns to the operating system."""

from __future__ import annotations

import ctypes
import os

MMAP_THRESHOLD = 2**18
"""Blocks of at least this many bytes are mapped separately and unmapped when freed, so they leave no holes in the heap.
Every new mapping costs page faults; ``benchmarks/resident.py`` compares thresholds."""

TRIM_THRESHOLD = 64 * 2**20
"""Free bytes at the top of the heap above which glibc shrinks it: its own default for the largest threshold."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h

CHOSEN_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables by which a user sets glibc's allocator, or replaces it: these are respected."""


def set_up_allocator(device_type: str) -> bool:
    """Fix the size from which glibc maps blocks separately, if the run is on a CPU; return whether it was done.

    By default glibc raises that size up to 32 MiB, to the largest mapped block freed so far. Activations are smaller;
    they then leave holes in the heap that later, differently sized ones do not fill.

    Does nothing on a GPU, without glibc, or if the environment sets up the allocator (:data:`CHOSEN_BY_USER`).
    """
    if device_type != "cpu" or not _has_glibc() or any(os.environ.get(name) for name in CHOSEN_BY_USER):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD))


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not Linux, or another C library
        return False
