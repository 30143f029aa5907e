"""Print a long answer, of which ``| head`` may read a part."""

from __future__ import annotations

import os
import sys


def print_answer(text: str) -> None:
    """Print a text; a reader that closes the pipe early is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes again as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
