"""Forked processes, without the seconds in which a new interpreter imports torch and Lightning; a busy machine."""

from __future__ import annotations

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


@contextmanager
def busy_machine() -> Iterator[None]:
    """Two processes per core that do nothing but run."""
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(min(64, 2 * (os.cpu_count() or 1)))]
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
        for process in processes:
            process.join()
        for process, (out, errors) in zip(processes, outputs, strict=True):
            out.seek(0)
            errors.seek(0)
            assert process.exitcode == 0, errors.read()[-3000:]
        return [out.read() for out, _ in outputs]


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
