"""glibc's allocator as a run on a CPU sets it up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lightning.cli.allocator import MMAP_THRESHOLD, _has_glibc, set_up_allocator

ROOT = Path(__file__).parents[2]

# The setting holds for a whole process, so each case has one. A freed block of 30 MiB has raised glibc's own threshold.
PROGRAM = """
import ctypes, sys
from grpo_lightning.cli.allocator import set_up_allocator

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks".split()] + [
        ("others", ctypes.c_size_t * 4)
    ]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(30 * 2**20))
done = set_up_allocator(sys.argv[1])
before = libc.mallinfo2().hblks
libc.malloc(int(sys.argv[2]))
print(done, libc.mallinfo2().hblks - before)
"""


def blocks_mapped(device_type: str, size: int, **environment: str) -> str:
    command = [sys.executable, "-c", PROGRAM, device_type, str(size)]
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(not _has_glibc(), reason="sets up glibc's allocator")
def test_blocks_above_the_threshold_are_mapped_separately() -> None:
    assert blocks_mapped("cpu", MMAP_THRESHOLD) == "True 1"
    assert blocks_mapped("cpu", MMAP_THRESHOLD // 2) == "True 0"
    assert blocks_mapped("cuda", MMAP_THRESHOLD) == "False 0"
    assert blocks_mapped("cpu", MMAP_THRESHOLD, MALLOC_TRIM_THRESHOLD_="100000") == "False 1"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: None)
    assert not set_up_allocator("cpu")


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

COMMAND = """
from contextlib import suppress
from pathlib import Path
from grpo_lightning.__main__ import main
with suppress(SystemExit):
    main(["nothing"])
import torch
block = torch.ones(2**24)
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
"""


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the kernel gives huge pages to all programs, or to none",
)
def test_the_command_takes_huge_pages_for_large_blocks_unless_told_otherwise() -> None:
    def kib_in_huge_pages(**environment: str) -> int:
        given = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        command = [sys.executable, "-c", COMMAND]
        done = subprocess.run(command, env=given | environment, cwd=ROOT, check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert kib_in_huge_pages() > 2**15
    assert kib_in_huge_pages(THP_MEM_ALLOC_ENABLE="0") == 0
