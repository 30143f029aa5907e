"""Where what the project logs is read: a terminal, or a notebook."""

from __future__ import annotations

import logging
import sys


def show_log() -> None:
    """Print what the project logs from INFO on, unless the program has set up logging itself."""
    ours = logging.getLogger("grpo_lightning")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    if not ours.handlers and not logging.getLogger().handlers:
        ours.addHandler(logging.StreamHandler(sys.stdout if in_notebook() else None))


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 run``, ``2,000 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
