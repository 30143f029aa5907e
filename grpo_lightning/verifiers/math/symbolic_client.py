"""Talks to the one symbolic worker of this process, from any thread; starts it when it is first needed."""

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
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

Outcome = Literal["equal", "different", "unparseable", "too complicated"]

# Importing SymPy takes about a second, and much longer on a busy machine with a cold disk. It happens once, is waited
# for apart from any comparison, and so never counts against an answer.
START_TIMEOUT_S = 120.0
# The worker keeps to the time limit itself. When it does not even answer, it is broken.
GRACE_S = 20.0

_ROOT = Path(__file__).resolve().parents[3]


class SymbolicWorker:
    """A warm subprocess that compares expressions, one at a time.

    A subprocess rather than a fork of this process, which may hold torch's threads and a CUDA context.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew. Also for a forked child, whose worker and lock belong to the parent."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str, timeout_s: float) -> Outcome:
        """Whether two LaTeX expressions are equal. Waits for the worker's start, if need be.

        Raises:
            ValueError: the gold answer cannot be parsed.
            RuntimeError: the worker cannot start, or broke.
        """
        with self._lock:
            process = self._started()
            try:
                request = json.dumps({"gold": gold, "answer": answer, "timeout": timeout_s}) + "\n"
                assert process.stdin is not None
                process.stdin.write(request.encode())
                process.stdin.flush()
                reply = _read_line(process, timeout_s + GRACE_S)
            except BaseException:
                # Whatever broke the exchange (an interrupt, too), a late reply must not answer the next request.
                self._stop()
                raise
        if "error" in reply:
            raise ValueError(f"MathVerifier cannot read the gold answer {gold!r}: {reply['error']}")
        return cast(Outcome, reply["outcome"])

    def stop(self) -> None:
        """End the worker, if there is one. The next comparison starts another."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "grpo_lightning.verifiers.math.symbolic_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            # An interrupt at the terminal is for the trainer: the worker ends when its input does.
            start_new_session=True,
        )
        try:
            hello = _read_line(self._process, START_TIMEOUT_S)
            if "error" in hello:
                raise RuntimeError(f"the symbolic worker could not start: {hello['error']} (pip install math-verify)")
        except BaseException:
            self._stop()
            raise
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        # The worker leads a group of its own: its forked child goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Closing flushes, which fails on a dead worker's pipe.
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RuntimeError(f"the symbolic worker did not answer in {timeout_s:g} s")
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise RuntimeError(f"the symbolic worker ended with exit code {process.wait()}")
            line += chunk
    reply: dict[str, Any] = json.loads(line)
    return reply


WORKER = SymbolicWorker()
atexit.register(WORKER.stop)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=WORKER.forget)
