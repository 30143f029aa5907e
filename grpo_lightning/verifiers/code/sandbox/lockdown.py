"""The isolation levels: what a worker does once, and what each of its children does before it serves."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import namespaces
from .landlock import Ruleset
from .seccomp import Filter, machine
from .system import Refused, die_with_parent, drop_capabilities, drop_uid

MAX_FD = 256

MAX_FILE_BYTES = 2**24
MAX_OPEN_FILES = 64
JUDGE_MEMORY_MB = 1024
_LIBRARIES = ("/lib", "/lib64", "/lib32")


class Lockdown:
    """One level, entered once by the worker.

    Args:
        level: ``namespaces``, ``landlock`` or ``unsafe``.
        timeout_s: CPU time of a child that runs a program.
        memory_mb: address space of such a child.
        readable: folders that children may read, besides Python's own.
        has_scratch: whether children that run a program have a folder to write in, where the level offers one.

    Raises:
        Refused: this machine does not offer the level.
    """

    def __init__(
        self, level: str, timeout_s: float, memory_mb: int, readable: Sequence[str] = (), has_scratch: bool = True
    ) -> None:
        self.level = level
        common = {
            resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
            resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
            resource.RLIMIT_CORE: 0,
        }
        # The judge lives for many runs, and so is ended by the worker's clock rather than by its processor time.
        self._judge_limits = _limits(common | {resource.RLIMIT_AS: JUDGE_MEMORY_MB * 2**20})
        self._program_limits = _limits(
            common | {resource.RLIMIT_AS: memory_mb * 2**20, resource.RLIMIT_CPU: int(timeout_s) + 2}
        )
        self._scratch: namespaces.Scratch | None = None
        if level == "unsafe":
            return
        self._filter = Filter(machine())
        paths = _readable_paths(readable)
        if level == "namespaces":
            namespaces.enter(machine(), paths)
            self._scratch = namespaces.Scratch() if has_scratch else None
        else:
            self._ruleset = Ruleset(machine(), paths)
            if os.geteuid() == 0 and all(_readable_by_all(path) for path in paths):
                drop_uid()

    def continue_inside(self) -> None:
        """Continue as the first process of the new pid namespace, if there is one; this process waits for its end."""
        if self.level != "namespaces":
            return
        pid = os.fork()
        if pid:
            os.closerange(0, MAX_FD)
            os.waitpid(pid, 0)
            os._exit(0)
        # Seen from inside, the parent has no number.
        die_with_parent(0, signal.SIGKILL)

    def renew(self) -> None:
        """Clear away what the last run left; it must have ended."""
        if self._scratch:
            self._scratch.renew()

    def confine(self, parent: int, is_judge: bool) -> None:
        """Lock this child down for good.

        Args:
            parent: the worker's process, with which this one ends.
            is_judge: the judge has separate limits, and no place to write in.
        """
        for kind, limits in self._judge_limits if is_judge else self._program_limits:
            resource.setrlimit(kind, limits)
        if self.level == "unsafe":
            die_with_parent(parent, signal.SIGKILL)
            return
        if self._scratch and is_judge:
            self._scratch.leave()
        elif self._scratch:
            self._scratch.enter()
        drop_capabilities()
        die_with_parent(parent, signal.SIGKILL)
        if self.level == "landlock":
            self._ruleset.enter()
        self._filter.install()


def _limits(values: dict[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """As ``setrlimit`` takes them; none above what is allowed already."""
    limits = []
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        limits.append((kind, (lowest, lowest)))
    return limits


def _readable_paths(more: Sequence[str]) -> list[str]:
    """Where Python and its libraries lie. The system's own Python lies in /usr."""
    paths = ["/usr", *(path for path in _LIBRARIES if os.path.exists(path))]
    for prefix in {os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix)}:
        if prefix == "/":
            raise Refused("Python is installed right in /, which would show programs every file")
        if not any(Path(prefix).is_relative_to(path) for path in paths):
            paths.append(prefix)
    for folder in map(os.path.realpath, more):
        if not any(Path(folder).is_relative_to(path) for path in paths):
            paths.append(folder)
    return paths


def _readable_by_all(path: str) -> bool:
    folder = Path(path)
    return all(part.stat().st_mode & 0o001 for part in folder.parents) and folder.stat().st_mode & 0o005 == 0o005
