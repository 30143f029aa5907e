"""Forked processes: separate state, without the seconds in which a new interpreter imports torch and Lightning."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO


def run_script(script: Path, *arguments: str) -> str:
    """Run a script with these arguments in a fork of this process, and return what it prints."""
    return forked(_script, script, arguments)


def forked(function: Callable[..., Any], *arguments: Any) -> str:
    """Call a function in a fork of this process, and return what it prints."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = get_context("fork").Process(target=_redirected, args=(out, errors, function, arguments))
        process.start()
        process.join()
        out.seek(0)
        errors.seek(0)
        assert process.exitcode == 0, errors.read()[-3000:]
        return out.read()


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
