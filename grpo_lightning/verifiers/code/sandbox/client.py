"""The trainer's side: a few workers, each with one run at a time, from any thread."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_lightning.errors import RunError

from .clock import START_TIMEOUT_S
from .messages import Level, Request, Result, Settings

# Loads the folder as a package of its own name, and neither the site-packages nor the rest of this project.
_BOOT = """
import sys
sys.path.remove("")
import importlib.util
spec = importlib.util.spec_from_file_location("sandbox", sys.argv.pop(1))
sys.modules["sandbox"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from sandbox.zygote import main
main()
"""


class SandboxUnavailable(RunError):
    """The isolation level asked for is not available on this machine, or does not hold; the message says why."""


class WorkerGone(RuntimeError):
    """A worker, or a process of it, was ended or stopped from outside, or hangs: the sample deserves another try."""


class Worker:
    """A warm process that serves one run at a time.

    Raises:
        SandboxUnavailable: the level is not available.
        RuntimeError: the worker cannot start.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(__file__).with_name("__init__.py"))
        arguments = [package, str(theirs.fileno()), json.dumps(asdict(settings))]
        try:
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-s", "-S", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Nothing of the trainer's environment. Sets of strings have the same order in every worker.
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                pass_fds=[theirs.fileno()],
                # An interrupt at the terminal is for the trainer: the worker ends when its socket does.
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        try:
            hello = self._receive(START_TIMEOUT_S)
            if "refused" in hello:
                raise SandboxUnavailable(f"{settings.level}: {hello['refused']}")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, request: Request) -> Result:
        """Judge one program. After an exception the worker is of no more use.

        Raises:
            WorkerGone: it was ended from outside, or hangs.
            RuntimeError: the worker broke.
        """
        # A file in memory, which the judge opens and the worker passes on unread.
        fd = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(json.dumps(vars(request)).encode())
            os.lseek(fd, 0, os.SEEK_SET)
            try:
                socket.send_fds(self._socket, [b"run"], [fd])
            except OSError as error:
                raise WorkerGone(f"the sandbox's worker is gone: {error}") from error
        finally:
            os.close(fd)
        answer = self._receive(self.settings.answer_s)
        report = answer["report"]
        if answer["killed"]:
            raise WorkerGone("a process of the sandbox was killed or stopped: the machine may be out of memory")
        if report is None:
            raise WorkerGone("the sandbox's judge broke, or was not ready in time, before it met the program")
        if report["outcome"] == "broken":
            raise RuntimeError(f"the sandbox broke: {report['detail']}")
        shown = {name: report[name] for name in ("test", "given", "expected") if name in report}
        shown["blocks"] = tuple(report.get("blocks", ()))
        if report["outcome"] == "error":
            return Result("error", f"cannot use the row's tests: {report['detail']}", **shown)
        if answer["hung"]:
            hung = f"gave up a program that hung: it neither ended nor used up its limit in {self.settings.hang_s:g} s"
            return Result("error", hung, **shown)
        if answer["late"]:
            outcome: Any = "failed" if report["outcome"] == "passed" else report["outcome"]
            limit = f"The program ran longer than the limit of {self.settings.timeout_s:g} s."
            return Result(outcome, limit, **shown)
        return Result(report["outcome"], report["detail"], **shown)

    def stop(self) -> None:
        """End the worker and all below it."""
        self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def forget(self) -> None:
        """In a forked child, the worker belongs to the parent."""
        self._socket.close()
        # Else its destructor would complain of a process that still runs.
        self._process.returncode = 0

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        self._socket.settimeout(timeout_s)
        try:
            message = self._socket.recv(2**18)
        except TimeoutError:
            raise WorkerGone(f"the sandbox's worker did not answer in {timeout_s:g} s: it hangs") from None
        except OSError as error:
            raise WorkerGone(f"the sandbox's worker is gone: {error}") from error
        if not message:
            raise WorkerGone(f"the sandbox's worker ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(message)
        return answer


class Pool:
    """Up to ``size`` workers of one level, started when they are first needed.

    Args:
        choose: gives the first worker, of a level that was found to hold.
        size: how many runs go on at once.
    """

    def __init__(self, choose: Callable[[], Worker], size: int) -> None:
        self._choose = choose
        self.size = size
        self._workers: list[Worker] = []
        self.forget()
        _pools.add(self)
        # At the end of the interpreter, too.
        weakref.finalize(self, _stop_all, self._workers)

    def forget(self) -> None:
        """Start anew. Also for a forked child, whose workers belong to the parent."""
        for worker in self._workers:
            worker.forget()
        self._workers.clear()
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._refusal: SandboxUnavailable | None = None
        # Slots rather than workers: an empty one starts its worker when it is taken.
        self._slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.size):
            self._slots.put(None)

    def start(self) -> Level:
        """Choose the level, once.

        Raises:
            SandboxUnavailable: no level, or not the one asked for. The machine is asked only once.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if self._settings is None:
                try:
                    worker = self._choose()
                except SandboxUnavailable as error:
                    self._refusal = error
                    raise
                self._slots.get()
                self._workers.append(worker)
                self._slots.put(worker)
                self._settings = worker.settings
            return self._settings.level

    def run(self, request: Request) -> Result:
        """Judge one program, when a worker is free. One that was ended from outside, or hangs, is replaced, once."""
        self.start()
        worker = self._slots.get()
        try:
            for is_last in (False, True):
                try:
                    if worker is None:
                        worker = self._new_worker()
                    return worker.run(request)
                except BaseException as error:
                    # Whatever broke the exchange (an interrupt, too), a late answer must not meet the next request.
                    if worker is not None:
                        self._discard(worker)
                        worker = None
                    if is_last or not isinstance(error, WorkerGone):
                        raise
            raise AssertionError("unreachable")
        finally:
            self._slots.put(worker)

    def stop(self) -> None:
        """End all workers; a later run starts others."""
        for _ in range(self.size):
            worker = self._slots.get()
            if worker is not None:
                self._discard(worker)
        for _ in range(self.size):
            self._slots.put(None)

    def _new_worker(self) -> Worker:
        assert self._settings is not None
        worker = Worker(self._settings)
        self._workers.append(worker)
        return worker

    def _discard(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.stop()


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)
