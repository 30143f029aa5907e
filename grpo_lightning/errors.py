"""What goes wrong in a way that one sentence explains: to the user, without a traceback."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return what a library says first, or the name of the error's type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ConfigError(ValueError):
    """The user's input is wrong. The message names the key or row, and the fix.

    The command line prints it alone, without a traceback, and exits with 2.
    """


class RunError(RuntimeError):
    """A run cannot continue, and the program is not at fault. The command line prints the message and exits with 1."""


class OutOfMemory(RunError):
    """The memory was not enough.

    Args:
        phase: the phase of the step in which it happened.
        fix: which setting to lower.
    """

    def __init__(self, phase: str, fix: str) -> None:
        super().__init__(phase, fix)
        self.phase = phase
        self.fix = fix
        self.shapes = ""
        """What was being computed; filled in by whoever knows it."""

    def __str__(self) -> str:
        shapes = f" ({self.shapes})" if self.shapes else ""
        return f"out of memory in the {self.phase} phase{shapes}: {self.fix}"
