"""What of a completion is meant to be read: all but its thoughts."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"(</?think>)")


def visible_text(completion: str) -> str:
    """The completion without its ``<think>`` blocks; nothing where a block is never closed.

    A closing tag without an opening one means that the prompt opened the block.
    """
    if "think>" not in completion:
        return completion
    kept: list[str] = []
    thinking = False
    for piece in _THINK_TAG.split(completion):
        if piece == "<think>":
            thinking = True
        elif piece == "</think>":
            if not thinking:
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(piece)
    # Joined by a line break, so that a block cannot glue two halves of a number together.
    return "" if thinking else "\n".join(kept)
