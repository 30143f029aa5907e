"""Finds the blocks of a completion that may hold a program. Nothing is parsed, and the time is linear."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import NamedTuple

_FENCE = re.compile(r"`{3,}|~{3,}")
# What may stand before a fence: the marks of quotations and of list items.
_QUOTE = re.compile(r"(?:>[ \t]?)+")
_ITEM = re.compile(r"(?:[-*+]|[0-9]{1,9}[.)])[ \t]+")
_QUOTES = re.compile(r'"""|' + "'''")
_PYTHON = re.compile(r"python|\bpy|jupyter", re.IGNORECASE)
_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")
_LINE_ENDS = re.compile(r"\r\n?")
_NO_BREAK_INDENT = re.compile(r"^[ \t]*\u00a0[ \t\u00a0]*", re.MULTILINE)


class _Fence(NamedTuple):
    """A line that is a fence, or ends in one.

    Args:
        marks: the backticks or tildes.
        info: what follows them.
        before: the line's text in front of them.
        is_quoted: whether the line is part of a quotation.
    """

    marks: str
    info: str
    before: str
    is_quoted: bool

    @property
    def language(self) -> str:
        """The first word, or all of what is in braces, as ``{code-cell} ipython3``."""
        return self.info if self.info.startswith("{") else self.info.partition(" ")[0]


class _Block(NamedTuple):
    language: str
    code: str


def program_blocks(text: str) -> tuple[str, ...]:
    """The blocks of an answer that may be its program; none is empty.

    The blocks without a language come first, then those in Python. Where several define a name, the last one counts.
    Where there is no fence, the whole answer is the only block.
    """
    text = _readable(text)
    blocks = _fenced(text)
    if blocks is None:
        return _cleaned([_without_tag(text)])
    python = [block.code for block in blocks if _PYTHON.search(block.language)]
    return _cleaned([block.code for block in blocks if not block.language] + python)


def other_blocks(text: str) -> tuple[str, ...]:
    """All blocks of an answer that are not empty: one may be Python by another name, such as ``text``."""
    return _cleaned([block.code for block in _fenced(_readable(text)) or ()])


def _readable(text: str) -> str:
    return _LINE_ENDS.sub("\n", text.translate(_INVISIBLE))


def _cleaned(codes: list[str]) -> tuple[str, ...]:
    return tuple(_NO_BREAK_INDENT.sub(_spaces, code) for code in codes if code.strip())


def _fenced(text: str) -> list[_Block] | None:
    """The fenced blocks; ``None`` for a text without fences. The last may be left open."""
    # A fence in a docstring is part of it. Where that leaves a block open, the quotes were of another kind.
    for heeds_quotes in (True, False):
        blocks, found, is_open = _scanned(text, heeds_quotes)
        if not is_open:
            break
    return blocks if found else None


def _scanned(text: str, heeds_quotes: bool) -> tuple[list[_Block], bool, bool]:
    """The blocks, whether there was any fence, and whether quotes have hidden a fence in a block that is left open."""
    blocks: list[_Block] = []
    opened: _Fence | None = None
    inside: list[str] = []
    found = is_hidden = False
    quotes = 0
    for line in text.split("\n"):
        if opened is None:
            fence = _opening(line)
            if fence is not None:
                found, opened, inside, quotes, is_hidden = True, fence, [""], 0, False
            continue
        content = _unquoted(line) if opened.is_quoted else line
        fence = _fence(content, opened)
        text_before = content if fence is None else fence.before
        quotes += len(_QUOTES.findall(text_before)) if heeds_quotes else 0
        if fence is None or quotes % 2:
            is_hidden = is_hidden or fence is not None
            inside.append(content)
            continue
        blocks.append(_block(opened, [*inside, *([text_before] if text_before.strip() else []), ""]))
        # The closing fence was forgotten where another block begins.
        reopens = fence.info and (_PYTHON.search(fence.language) or (" " not in fence.info and fence.info[0] != "<"))
        opened, inside, quotes, is_hidden = (fence if reopens else None), [""], 0, False
    if opened is not None:
        blocks.append(_block(opened, inside))
    return blocks, found, opened is not None and is_hidden


def _block(opened: _Fence, lines: list[str]) -> _Block:
    return _Block(opened.language, dedent("\n".join(lines)))


def _opening(line: str) -> _Fence | None:
    """The fence that a line begins with; or ends in, where that names Python: ``Solution: ```python``."""
    is_quoted = line.lstrip().startswith(">")
    content = _unquoted(line).lstrip(" \t")
    if (item := _ITEM.match(content)) is not None:
        content = content[item.end() :].lstrip(" \t")
    marks = _FENCE.match(content)
    if marks is not None:
        info = content[marks.end() :].strip()
        return _Fence(marks[0], info, "", is_quoted) if "`" not in info else None
    before, backticks, info = content.rpartition("```")
    is_end = bool(backticks) and " " not in info.strip() and _PYTHON.match(info.strip()) is not None
    return _Fence("```", info.strip(), before, is_quoted) if is_end else None


def _fence(line: str, opened: _Fence) -> _Fence | None:
    """The fence that ends an open block: at the beginning of a line, or after its code."""
    content = line.strip(" \t")
    if content.startswith(opened.marks):
        info = content.lstrip(opened.marks[0]).strip()
        return _Fence(opened.marks, info, "", opened.is_quoted) if "`" not in info else None
    if content.endswith(opened.marks):
        return _Fence(opened.marks, "", line.rstrip(" \t").rstrip(opened.marks[0]), opened.is_quoted)
    return None


def _unquoted(line: str) -> str:
    content = line.lstrip(" \t")
    quote = _QUOTE.match(content)
    return content[quote.end() :] if quote else line


def _without_tag(text: str) -> str:
    """An answer without the tags that it is wrapped in, as ``<answer>...</answer>``."""
    inside = text.strip()
    name = inside[1 : inside.find(">")]
    if inside.startswith("<") and name.isidentifier() and inside.endswith(f"</{name}>"):
        return inside[len(name) + 2 : -len(name) - 3]
    return text


def _spaces(indent: re.Match[str]) -> str:
    return indent[0].replace("\u00a0", " ")
