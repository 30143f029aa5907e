"""A worker: forks a judge and a defendant for each request, and ends both at the limits.

It never reads a request, which comes as a file that only the judge opens: what a defendant inherits of this process's
memory holds no test, neither of this run nor of an earlier one.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from . import defendant, judge
from .clock import RunClock
from .lockdown import MAX_FD, Lockdown
from .scripts import STREAM_FDS
from .system import Refused

# What solutions commonly import: done once, before any fork.
_WARM = [
    *("abc", "array", "bisect", "calendar", "cmath", "collections", "collections.abc", "contextlib", "copy"),
    *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools"),
    *("json", "math", "operator", "random", "re", "statistics", "string", "textwrap", "time", "typing", "unicodedata"),
]
_MAX_REPORT_BYTES = 65536
# From the end of a child's connection to the child's own: it frees its memory in between, some ms of work.
_MAX_DYING_S = 2.0
# Behind standard input, output and error.
_CHANNEL_FD = 3
_ABOVE = 32


class Judge:
    """The judge's process and the socket to it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def poll(self, timeout_s: float) -> bool:
        """Whether it says something, or ends, in this time."""
        return bool(self._poll.poll(timeout_s * 1000))


class Worker:
    """The event loop of the zygote, if one event at a time is a loop."""

    def __init__(self, control: socket.socket, lockdown: Lockdown, settings: dict[str, Any], null: int) -> None:
        self.control = control
        self.lockdown = lockdown
        self.timeout_s: float = settings["timeout_s"]
        self.hang_s: float = settings["hang_s"]
        self.pid = os.getpid()
        self.null = null
        self.judge: Judge | None = None

    def serve(self) -> None:
        """Answer requests until the client hangs up."""
        while True:
            message, fds, _, _ = socket.recv_fds(self.control, 16, 1)
            if not message:
                return
            self._run(fds[0])

    def _run(self, payload: int) -> None:
        if self.judge is None:
            self.judge = self._new_judge()
        self.lockdown.renew()
        ours, theirs = socket.socketpair()
        pid = self._fork(lambda: self._be_defendant(theirs))
        theirs.close()
        socket.send_fds(self.judge.control, [b"run"], [payload, ours.fileno()])
        ours.close()
        os.close(payload)
        answer = self._watch(self.judge, pid)
        report = answer["report"]
        judge_stays = report is not None and report["final"] and report["stays"]
        judge_ended = report is None or not report["final"]
        has_ended = report is not None and report.get("has_ended", False)
        if answer["hung"]:
            answer["killed"] = _is_stopped(self.judge.pid) or _is_stopped(pid)
        else:
            answer["killed"] = not answer["late"] and (
                (judge_ended and _was_killed(self.judge.pid)) or ((judge_ended or has_ended) and _was_killed(pid))
            )
        _kill(pid)
        if not judge_stays:
            _kill(self.judge.pid)
        # Before the wait for the children, whose memory takes its time to be freed.
        self.control.send(json.dumps(answer).encode())
        os.waitpid(pid, 0)
        if not judge_stays:
            os.waitpid(self.judge.pid, 0)
            self.judge.control.close()
            self.judge = None

    def _watch(self, judge: Judge, pid: int) -> dict[str, Any]:
        """Wait for the judge's final report, or for a limit; the last report counts."""
        clock = RunClock((judge.pid, pid), self.timeout_s, self.hang_s)
        report, hung = None, False
        while report is None or not report["final"]:
            if judge.poll(clock.patience_s()):
                message = judge.control.recv(_MAX_REPORT_BYTES)
                if not message:
                    break
                report = json.loads(message)
                if "before_s" in report:
                    clock.start(report["before_s"])
            elif clock.late:
                break
            elif clock.hung:
                hung = True
                break
        late = clock.late or bool(report and report.get("late"))
        return {"report": report, "late": late, "hung": hung and not late}

    def _new_judge(self) -> Judge:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = self._fork(lambda: self._be_judge(theirs))
        theirs.close()
        return Judge(pid, ours)

    def _fork(self, main: Callable[[], NoReturn]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                main()
            finally:
                os._exit(1)
        return pid

    def _be_defendant(self, connection: socket.socket) -> NoReturn:
        # A separate group, which even the unsafe level can end as one.
        os.setsid()
        streams = [os.memfd_create("stream") for _ in STREAM_FDS]
        self.lockdown.confine(self.pid, is_judge=False)
        for fd in (0, 1, 2):
            os.dup2(self.null, fd)
        # First out of the way: one may have the number that another gets.
        fds = [os.dup2(fd, _ABOVE + fd) for fd in (connection.fileno(), *streams)]
        for fd, number in zip(fds, (_CHANNEL_FD, *STREAM_FDS), strict=True):
            os.dup2(fd, number)
        os.closerange(max(STREAM_FDS) + 1, MAX_FD)
        gc.enable()
        defendant.run(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=_CHANNEL_FD), self.timeout_s)

    def _be_judge(self, control: socket.socket) -> NoReturn:
        self.control.close()
        self.lockdown.confine(self.pid, is_judge=True)
        # The programs inherit the state that the zygote's generator has.
        random.seed()
        gc.enable()
        judge.serve(control)


def _was_killed(pid: int) -> bool:
    """Whether a child was killed from outside, as by the kernel when the machine runs out of memory.

    Its connection has ended, and so will the child, soon after: unless a program has closed it and lives on.
    """
    deadline = time.monotonic() + _MAX_DYING_S
    while (status := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return status.si_code == os.CLD_KILLED and status.si_status == signal.SIGKILL


def _is_stopped(pid: int) -> bool:
    """Whether a child was stopped from outside: only at the level ``unsafe`` may a program send signals."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it has ended, so nothing of it can stop any more
        return False


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _be_killed_first() -> None:
    """When memory runs out, this and its children are to go, not the trainer."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main() -> None:
    """Serve on the socket whose number is the first argument, with the settings that are the second, as JSON."""
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    sys.argv = ["solution.py"]
    os.environ.clear()
    # Missing without the site module, and used by many scripts.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    _be_killed_first()
    for module in _WARM:
        importlib.import_module(module)
    try:
        null = os.open("/dev/null", os.O_RDWR)
        lockdown = Lockdown(settings["level"], settings["timeout_s"], settings["memory_mb"])
        lockdown.continue_inside()
    except (Refused, OSError) as error:
        control.send(json.dumps({"refused": str(error)}).encode())
        return
    control.send(json.dumps({"ready": True}).encode())
    gc.collect()
    gc.freeze()
    gc.disable()
    Worker(control, lockdown, settings, null).serve()
