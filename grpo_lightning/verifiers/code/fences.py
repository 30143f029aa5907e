"""Finds the blocks of a completion that may hold a program. Nothing is parsed, and the time is linear."""

from __future__ import annotations

import re
from textwrap import dedent

_FENCE = re.compile(r"`{3,}|~{3,}")
_LANGUAGE = re.compile(r"[ \t]*(\S*)")
_PYTHON = frozenset({"python", "python3", "py"})


def program_blocks(text: str) -> tuple[str, ...]:
    """The blocks of an answer that are not empty: those in Python, else those without a language.

    Where there is no fence, the whole answer is the only block.
    """
    blocks = _fenced(text)
    if blocks is None:
        found = [text]
    else:
        python = [code for language, code in blocks if language.lower() in _PYTHON]
        found = python or [code for language, code in blocks if not language]
    return tuple(code for code in found if code.strip())


def _fenced(text: str) -> list[tuple[str, str]] | None:
    """The fenced blocks with their languages; ``None`` where there is no fence. The last may be left open."""
    blocks: list[tuple[str, str]] = []
    opened: tuple[str, str] | None = None
    inside: list[str] = []
    found = False
    for line in text.split("\n"):
        fence = _fence(line)
        if fence is not None and opened is None:
            found, opened, inside = True, fence, [""]
        elif fence is not None and opened is not None and fence[0].startswith(opened[0]) and not fence[1]:
            blocks.append((opened[1], dedent("\n".join([*inside, ""]))))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        blocks.append((opened[1], dedent("\n".join(inside))))
    return blocks if found else None


def _fence(line: str) -> tuple[str, str] | None:
    """The fence that a line is, with its language, if any. Read in parts: one pattern of all would backtrack."""
    line = line.lstrip(" \t")
    fence = _FENCE.match(line)
    language = _LANGUAGE.match(line, fence.end()) if fence else None
    return (fence[0], language[1]) if fence and language and "`" not in line[fence.end() :] else None
