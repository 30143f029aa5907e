"""The isolation levels: what a worker does once, and what each of its children does before it serves."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from . import namespaces
from .landlock import Ruleset
from .seccomp import Filter, machine
from .system import Refused, die_with_parent, drop_capabilities, drop_uid

MAX_FILE_BYTES = 2**24
MAX_OPEN_FILES = 64
JUDGE_MEMORY_MB = 1024
_LIBRARIES = ("/lib", "/lib64", "/lib32")


class Lockdown:
    """One level, entered once by the worker.

    Args:
        level: ``namespaces``, ``landlock`` or ``unsafe``.

    Raises:
        Refused: the level is not to be had here.
    """

    def __init__(self, level: str, timeout_s: float, memory_mb: int) -> None:
        self.level = level
        self.memory_mb = memory_mb
        self.cpu_s = int(timeout_s) + 2
        if level == "unsafe":
            return
        self._filter = Filter(machine())
        paths = _readable_paths()
        if level == "namespaces":
            namespaces.enter(machine(), paths)
        else:
            self._ruleset = Ruleset(machine(), paths)
            if os.geteuid() == 0 and all(_readable_by_all(path) for path in paths):
                drop_uid()

    @property
    def makes_first_process(self) -> bool:
        """Whether the worker's next child is to be the worker, as the first process of a pid namespace."""
        return self.level == "namespaces"

    def confine(self, parent: int, is_judge: bool) -> None:
        """Lock this child down for good.

        Args:
            parent: the worker's process, with which this one ends.
            is_judge: it lives for many runs, and so is ended by the worker's clock rather than by its processor time;
                and it needs no place to write in.
        """
        _limit(resource.RLIMIT_AS, (JUDGE_MEMORY_MB if is_judge else self.memory_mb) * 2**20)
        if not is_judge:
            _limit(resource.RLIMIT_CPU, self.cpu_s)
        _limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
        _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
        _limit(resource.RLIMIT_CORE, 0)
        if self.level == "unsafe":
            return
        if self.level == "namespaces" and not is_judge:
            namespaces.mount_scratch()
        drop_capabilities()
        die_with_parent(parent, signal.SIGKILL)
        if self.level == "landlock":
            self._ruleset.enter()
        self._filter.install()


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _readable_paths() -> list[str]:
    """Where Python and its libraries lie. The system's own Python lies in /usr."""
    paths = ["/usr", *(path for path in _LIBRARIES if os.path.exists(path))]
    for prefix in {os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix)}:
        if prefix == "/":
            raise Refused("Python is installed right in /, which would show programs every file")
        if not any(Path(prefix).is_relative_to(path) for path in paths):
            paths.append(prefix)
    return paths


def _readable_by_all(path: str) -> bool:
    folder = Path(path)
    return all(part.stat().st_mode & 0o001 for part in folder.parents) and folder.stat().st_mode & 0o005 == 0o005
