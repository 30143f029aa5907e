"""Imports of large libraries, without garbage collection meanwhile."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while libraries are imported, nor ever go through them.

    Imports leave next to no garbage, and every collection goes through all that has been imported before: a sixth of
    the time. Does nothing once torch is there: the garbage of a program that calls this is not ours.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
