"""The streams of a script in the defendant's process, and its end, after which another one may follow."""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# The input and output of scripts: files in memory, as long as the limit on files allows.
STREAM_FDS = (4, 5)


def open_streams(given: bytes) -> None:
    """Give the next script an input and an empty output."""
    for number, fd in enumerate(STREAM_FDS):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        # Programs that read by open(0) close it.
        os.dup2(fd, number)
    os.write(0, given)
    os.lseek(0, 0, os.SEEK_SET)
    sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[assignment, misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[assignment, misc]


@contextmanager
def exit_returns() -> Iterator[None]:
    """Have ``os._exit`` end the script, and not the process whose output is yet to be read."""
    original, os._exit = os._exit, cast(Any, sys.exit)
    try:
        yield
    finally:
        os._exit = original


def _stream(fd: int, mode: str) -> TextIO:
    return cast(TextIO, open(fd, mode, encoding="utf-8", errors="surrogateescape", closefd=False))


def end(module: types.ModuleType) -> None:
    """What Python does at the end of a script, without ending: another run may follow."""
    futures: Any = sys.modules.get("concurrent.futures.thread")
    if futures is not None:
        # Ends the workers of executors that nobody shut down. It also marks the end of all work.
        futures._python_exit()
        futures._shutdown = False
    # Imported by the program or by nobody: it would make each fork slower.
    threading: Any = sys.modules.get("threading")
    while threading and (waiting := [one for one in threading.enumerate() if not (one.daemon or _is_main(one))]):
        waiting[0].join()
    atexit._run_exitfuncs()
    _flush()
    # Files left open write what they hold when they go, and objects may have last words.
    vars(module).clear()
    gc.collect()
    _flush()


def _is_main(thread: Any) -> bool:
    return bool(thread.ident == _thread.get_ident())


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        # It may have been closed, detached, or replaced by anything.
        with suppress(Exception):
            cast(TextIO, stream).flush()
