"""Forked processes, without the seconds in which a new interpreter imports torch and Lightning; a busy machine.

Also what commands change in the process that they run in.
"""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

TIMEOUT_S = 600.0


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Undo what commands and benchmarks set for their whole process: where it imports from, and what it logs."""
    path = list(sys.path)
    loggers = [logging.getLogger(name) for name in ("grpo_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        sys.path[:] = path
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Four processes per core that do nothing but run."""
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(min(64, 4 * (os.cpu_count() or 1)))]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def run_script(script: Path, *arguments: str) -> str:
    """Run a script with these arguments in a fork of this process, and return what it prints."""
    (printed,) = forked(_script, [(script, arguments)])
    return printed


def forked(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[str]:
    """Make each call of a function in a fork of this process, all at once, and return what each prints."""
    with ExitStack() as stack:
        outputs = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in calls]
        processes = [
            get_context("fork").Process(target=_redirected, args=(*files, function, arguments))
            for files, arguments in zip(outputs, calls, strict=True)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()  # one that waits for another which has failed
                process.join()
        texts = []
        for process, files in zip(processes, outputs, strict=True):
            for file in files:
                file.seek(0)
            out, errors = (file.read() for file in files)
            assert process.exitcode == 0, out[-3000:] + errors[-3000:]
            texts.append(out)
        return texts


def _redirected(out: TextIO, errors: TextIO, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # The descriptors are for the processes that this one starts.
    os.dup2(out.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    sys.stdout, sys.stderr = out, errors
    function(*arguments)


def _script(script: Path, arguments: tuple[str, ...]) -> None:
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
