"""Print a long answer, of which ``| head`` may read a part."""

from __future__ import annotations

import os
import select
import sys


def print_answer(text: str) -> None:
    """Print a text; a reader that closes the pipe early is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        abandon_closed_pipe()


def abandon_closed_pipe() -> bool:
    """Write no more to standard output if what reads it has ended; return whether it has."""
    number = sys.stdout.fileno()
    place = select.poll()
    place.register(number)
    if not any(event & select.POLLERR for _, event in place.poll(0)):
        return False
    # Python flushes again as it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True
