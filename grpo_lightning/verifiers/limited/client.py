"""Runs a function in another process, under limits of CPU time and memory, from any thread."""

from __future__ import annotations

import atexit
import json
import os
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
    """The process ended, or the child that ran the call was killed from outside."""


def process_environment() -> dict[str, str]:
    """Return the environment of a Python process that finds this package and gives the same results every time.

    Sets have the same order in each such process, for libraries whose results depend on it. It has one thread, so that
    it can fork.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(paths)}


class LimitedWorker:
    """Calls one function, one call at a time, each in a fresh fork of a warm process.

    What a call returns depends on its arguments alone: the limit counts the call's own CPU time, not the time it waits
    for a busy machine, and no call sees what another one left. The start of the process counts against no call.

    Args:
        setup: ``module:function``, called once in the process before the first call, to import and to warm up; empty
            for nothing.
        call: ``module:function``. Its arguments and its result are written as JSON.
        memory_bytes: limit of a call's address space, what the setup takes included.
        prepare: ``module:function``, called in the warm process with the first argument of each call, to keep what
            later calls share. It must not depend on what a model has written.
        level: the level of isolation that calls run at (``docs/sandbox.md``); empty for limits alone.
        readable: folders that calls may read, besides Python's own, where they are isolated.
    """

    def __init__(
        self,
        setup: str,
        call: str,
        memory_bytes: int = MEMORY_BYTES,
        prepare: str = "",
        level: str = "",
        readable: Sequence[str] = (),
    ) -> None:
        settings = {"setup": setup, "call": call, "prepare": prepare, "memory_bytes": memory_bytes}
        settings |= {"level": level, "readable": list(readable)}
        self._command = [sys.executable, "-m", "grpo_lightning.verifiers.limited.process", json.dumps(settings)]
        self.forget()
        _ALL.add(self)

    def forget(self) -> None:
        """Start anew, and leave the process to whoever else has it: a forked process calls this."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process, unless it runs. It gets ready in the background, and the first call waits for it."""
        with self._lock:
            self._start()

    def call(self, args: list[Any], cpu_s: float) -> Any:
        """The function's result, or what it ran out of.

        If the process dies under a call (killed for another program's memory, say), the call is made once more.

        Raises:
            RuntimeError: the function raised (this is the message), the process cannot start or died twice, or nothing
                came back for so long that something must hang.
        """
        with self._lock:
            try:
                reply = self._exchange(args, cpu_s)
            except WorkerDied:
                reply = self._exchange(args, cpu_s)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return OutOf(reply["out_of"]) if "out_of" in reply else reply["result"]

    def stop(self) -> None:
        """End the process, if there is one. The next call starts another."""
        with self._lock:
            self._stop()

    def _exchange(self, args: list[Any], cpu_s: float) -> dict[str, Any]:
        process = self._start()
        try:
            if not self._ready:
                hello = _read_line(process, START_HANG_S)
                if "error" in hello:
                    raise RuntimeError(f"a worker process could not start: {hello['error']}")
                self._ready = True
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"args": args, "cpu_s": cpu_s}).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError as error:
                raise WorkerDied(f"a worker process ended with exit code {process.wait()}") from error
            reply = _read_line(process, CALL_HANG_S + HANG_PER_CPU_SECOND * cpu_s)
        except BaseException:
            # Whatever broke the exchange (an interrupt, too), a late reply must not answer the next request.
            self._stop()
            raise
        if "killed" in reply:
            raise WorkerDied(f"a worker's child was killed by signal {reply['killed']}")
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=process_environment(),
            # An interrupt at the terminal is for the trainer: the process ends when its input does.
            start_new_session=True,
        )
        return self._process

    def _stop(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        # The process leads a separate group: its forked child goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Closing flushes, which fails on a dead process's pipe.
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()


def _read_line(process: subprocess.Popen[bytes], hang_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    deadline = time.monotonic() + hang_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RuntimeError(f"a worker process did not answer in {hang_s:g} s")
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerDied(f"a worker process ended with exit code {process.wait()}")
            line += chunk
    reply: dict[str, Any] = json.loads(line)
    return reply


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
