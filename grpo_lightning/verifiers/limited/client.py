"""Runs a function in another process, under limits of CPU time and memory, from any thread."""

from __future__ import annotations

import atexit
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2**30
# Wall-clock time only ends a hang. A machine so busy that a call gets less than a hundredth of a core is not expected.
START_HANG_S = 300.0
CALL_HANG_S = 120.0
HANG_PER_CPU_SECOND = 100.0

_ROOT = Path(__file__).resolve().parents[3]


class OutOf(Enum):
    """What a call ran out of, returned instead of its result."""

    TIME = "CPU time"
    MEMORY = "memory"


class WorkerDied(RuntimeError):
    """The process ended or does not answer, or the child that ran the call was killed from outside."""


def process_environment() -> dict[str, str]:
    """Return the environment of a Python process that finds this package and gives the same results every time.

    Sets have the same order in each such process, for libraries whose results depend on it. It has one thread, so that
    it can fork.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(paths)}


def processors() -> int:
    """The number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LimitedWorker:
    """Calls one function, each time in a fresh fork of a warm process.

    What a call returns depends on its arguments alone: the limit counts the call's own CPU time, not the time it waits
    for a busy machine, and grows where a second of CPU time does less than usual. No call sees what another one left.
    The start of a process counts against no call.

    Args:
        setup: ``module:function``, called once in a process before its first call, to import and to warm up; empty
            for nothing.
        call: ``module:function``. Its arguments and its result are written as JSON.
        memory_bytes: limit of a call's address space, what the setup takes included.
        prepare: ``module:function``, called in the warm process with the first argument of each call, to keep what
            later calls share. It must not depend on what a model has written.
        level: the level of isolation that calls run at (``docs/sandbox.md``); empty for limits alone.
        readable: folders that calls may read, besides Python's own, where they are isolated.
        processes: calls that run at the same time; further ones wait. A second process starts only when two threads
            call at once.
        hang_s: wall-clock seconds, on top of 100 per second of a call's limit, after which a call hangs.
    """

    def __init__(
        self,
        setup: str,
        call: str,
        memory_bytes: int = MEMORY_BYTES,
        prepare: str = "",
        level: str = "",
        readable: Sequence[str] = (),
        processes: int = 1,
        hang_s: float = CALL_HANG_S,
    ) -> None:
        settings = {"setup": setup, "call": call, "prepare": prepare, "memory_bytes": memory_bytes}
        settings |= {"level": level, "readable": list(readable)}
        command = [sys.executable, "-m", "grpo_lightning.verifiers.limited.process", json.dumps(settings)]
        self._processes = [LimitedProcess(command, hang_s) for _ in range(processes)]
        self.forget()
        _ALL.add(self)

    def forget(self) -> None:
        """Reset without stopping the processes: for a forked process, whose parent still uses them."""
        # The last one put in is the first one taken, so that few processes serve few threads.
        self._free: queue.LifoQueue[LimitedProcess] = queue.LifoQueue()
        self._stopping = threading.Lock()
        for process in reversed(self._processes):
            process.forget()
            self._free.put(process)

    @property
    def pids(self) -> list[int]:
        """The processes that have been started."""
        return [process.pid for process in self._processes if process.pid is not None]

    def start(self) -> None:
        """Start a process, unless one runs. It gets ready in the background, and the first call waits for it."""
        try:
            process = self._free.get_nowait()
        except queue.Empty:
            return  # all of them are in use
        try:
            process.start()
        finally:
            self._free.put(process)

    def call(self, args: list[Any], cpu_s: float) -> Any:
        """The function's result, or what it ran out of.

        If the process dies or hangs under a call (killed for another program's memory, say), the call is made once
        more, in another process.

        Raises:
            RuntimeError: the function raised (this is the message), the process cannot start, or it died or hung twice.
        """
        process = self._free.get()
        try:
            try:
                reply = process.exchange(args, cpu_s)
            except WorkerDied:
                reply = process.exchange(args, cpu_s)
        finally:
            self._free.put(process)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return OutOf(reply["out_of"]) if "out_of" in reply else reply["result"]

    def stop(self) -> None:
        """End the processes, if there are any, when their calls are done. The next call starts another."""
        with self._stopping:
            taken = [self._free.get() for _ in self._processes]
            for process in reversed(taken):
                process.stop()
                self._free.put(process)


class LimitedProcess:
    """A process that makes one call at a time. It starts with the first one, and again after it has died.

    Args:
        command: what starts it.
        hang_s: as for :class:`LimitedWorker`.
    """

    def __init__(self, command: list[str], hang_s: float) -> None:
        self._command = command
        self._hang_s = hang_s
        self.forget()

    def forget(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def exchange(self, args: list[Any], cpu_s: float) -> dict[str, Any]:
        """Make a call, and return the reply.

        Raises:
            WorkerDied: the process, or its child, ended or hung.
            RuntimeError: the process cannot start.
        """
        request = json.dumps({"args": args, "cpu_s": cpu_s}).encode() + b"\n"
        process = self.start()
        try:
            if not self._ready:
                hello = _read_line(process, time.monotonic() + START_HANG_S)
                if "error" in hello:
                    raise RuntimeError(f"a worker process could not start: {hello['error']}")
                self._ready = True
            deadline = time.monotonic() + self._hang_s + HANG_PER_CPU_SECOND * cpu_s
            _write(process, request, deadline)
            reply = _read_line(process, deadline)
        except BaseException:
            # Whatever broke the exchange (an interrupt, too), a late reply must not answer the next request.
            self.stop()
            raise
        if "killed" in reply:
            raise WorkerDied(f"a worker's child was killed by signal {reply['killed']}")
        return reply

    def start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=process_environment(),
            # An interrupt at the terminal is for the trainer: the process ends when its input does.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        # A write to a process that does not read must not wait for ever.
        os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def stop(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        # The process leads a separate group: its forked child goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe.close()


def _write(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> None:
    assert process.stdin is not None
    unsent = memoryview(request)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while unsent:
            _wait(selector, deadline)
            try:
                unsent = unsent[os.write(process.stdin.fileno(), unsent) :]
            except BrokenPipeError as error:
                raise WorkerDied(f"a worker process ended with exit code {process.wait()}") from error


def _read_line(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    assert process.stdout is not None
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            _wait(selector, deadline)
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerDied(f"a worker process ended with exit code {process.wait()}")
            line += chunk
    reply: dict[str, Any] = json.loads(line)
    return reply


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    if not selector.select(max(0.0, deadline - time.monotonic())):
        raise WorkerDied("a worker process did not answer in time: it hangs")


_ALL: weakref.WeakSet[LimitedWorker] = weakref.WeakSet()


def _stop_all() -> None:
    for worker in list(_ALL):
        worker.stop()


def _forget_all() -> None:
    for worker in list(_ALL):
        worker.forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
