"""What the trainer's side and a worker tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .clock import START_TIMEOUT_S, hang_limit_s

# A worker keeps to the limits itself. When it does not even answer, it hangs.
GRACE_S = 20.0

Level = Literal["namespaces", "landlock", "unsafe"]
SandboxOption = Literal["auto", "namespaces", "landlock", "unsafe"]
"""What a verifier's option ``sandbox`` may be."""


@dataclass(frozen=True)
class Settings:
    """What a worker is started with.

    Args:
        level: the isolation level.
        timeout_s: processor time of a run.
        memory_mb: address space of the program's process.
        hang_s: wall-clock time of a run, after which it is an error.
        answer_s: wall-clock time after which a worker that has not answered counts as hung.
    """

    level: Level
    timeout_s: float
    memory_mb: int
    hang_s: float = 0.0
    answer_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hang_s", self.hang_s or hang_limit_s(self.timeout_s))
        object.__setattr__(self, "answer_s", self.answer_s or START_TIMEOUT_S + self.hang_s + GRACE_S)


@dataclass(frozen=True)
class Request:
    """A program, and what it is judged by.

    Args:
        blocks: the parts of a completion that the program is chosen from.
        tests: Python text.
        entry_point: the function under test, as :class:`.rowtests.EntryPoint` reads it.
        io: what the program is given as a script, and what it must print.
        calls: lists of arguments of the entry point, with the results that are accepted.
        prelude: Python text that is run before the program.
        rel_tol: how far numbers of ``io`` and ``calls`` may be off, as a part of the expected number.
        abs_tol: how far they may be off.
    """

    blocks: tuple[str, ...]
    tests: str | None = None
    entry_point: str | None = None
    io: tuple[dict[str, str], ...] = ()
    calls: tuple[dict[str, Any], ...] = ()
    prelude: str | None = None
    rel_tol: float = 0.0
    abs_tol: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        outcome: ``passed``; ``failed``, a program that loads; ``invalid``, one that does not; ``error``, unusable
            tests or a program that hung.
        detail: a sentence for the program's author, or about the tests.
        blocks: the numbers of the blocks that were run; empty for all.
        test: the test that failed.
        given: what the program gave there; empty if that is not known.
        expected: what it should have given; empty if that is not known.
    """

    outcome: Literal["passed", "failed", "invalid", "error"]
    detail: str
    blocks: tuple[int, ...] = ()
    test: str = ""
    given: str = ""
    expected: str = ""
