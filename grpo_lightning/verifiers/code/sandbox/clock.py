"""The limits on a run: processor time, which decides a verdict, and wall-clock time, which only ends a hang."""

from __future__ import annotations

import time

# How long the judge and the program's process may take to get ready, on whatever busy machine.
START_TIMEOUT_S = 60.0
# Processor time that every run is given besides its limit. A forked process pays for the pages that it touches first,
# and more so on a busy machine: some 2 ms for a program of one line, up to 10 ms with eight busy processes beside it.
ALLOWANCE_S = 0.05

# The kernel's number of the clock of a process, all threads together: MAKE_PROCESS_CPUCLOCK in posix-timers.h.
_CPUCLOCK_SCHED = 2


def hang_limit_s(timeout_s: float) -> float:
    """Wall-clock seconds after which a run that has not used up its processor time is given up as an error.

    A machine with ten runnable processes per core still gives a run all of its processor time by then.
    """
    return max(30.0, 10 * timeout_s)


def processor_time_s(pid: int) -> float:
    """Seconds of processor time that all threads of a living or unreaped process have used."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


class RunClock:
    """The clocks of one run.

    Args:
        pids: the processes whose processor time counts, added up.
        timeout_s: limit on it, from :meth:`start` on.
        hang_s: limit on the wall-clock time from :meth:`start` on.
    """

    def __init__(self, pids: tuple[int, ...], timeout_s: float, hang_s: float) -> None:
        self.pids = pids
        self.limit_s = timeout_s + ALLOWANCE_S
        self.hang_s = hang_s
        self.deadline = self.next_look = time.monotonic() + START_TIMEOUT_S
        self.before_s: float | None = None

    def start(self, before_s: float) -> None:
        """Start to count.

        Args:
            before_s: processor time that the processes had used before they met the program.
        """
        self.before_s = before_s
        now = time.monotonic()
        self.deadline = now + self.hang_s
        self.next_look = min(self.deadline, now + self.limit_s)

    @property
    def late(self) -> bool:
        """Whether the processor time is used up. Looked at once more at the end: who looks when decides nothing."""
        if self.before_s is None:
            return False
        left_s = self.limit_s + self.before_s - sum(map(processor_time_s, self.pids))
        # One thread cannot use it up any sooner.
        self.next_look = min(self.deadline, time.monotonic() + max(left_s, 0.001))
        return left_s < 0

    @property
    def hung(self) -> bool:
        return time.monotonic() >= self.deadline

    def patience_s(self) -> float:
        """How long to wait for news before looking at the clocks again."""
        return max(self.next_look - time.monotonic(), 0.0)
