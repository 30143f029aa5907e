"""Commas: which separate thousands, and which the members of a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_GROUPED = r"(?<![\w.,}])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,\S)"
_IS_GROUPED = re.compile(_GROUPED)
_TOKEN = re.compile(rf"{_GROUPED}|\\[{{}}]|[()\[\]{{}}]|,\s?")
_GROUPS = re.compile(r"[\s$]*([1-9][0-9]{0,2}(?:,[0-9]{3})+)[\s$.]*")
_LIST = re.compile(r"[\s$]*([1-9][0-9]{0,2}(?:(?:, |; | and )[0-9]{1,3})+)[\s$.]*")
# Two groups are a number, in whatever order.
MIN_GROUPS = 3


@dataclass
class _Bracket:
    """What is between two brackets: numbers with commas, and whether other commas are followed by spaces."""

    is_list: bool
    numbers: list[re.Match[str]] = field(default_factory=list)
    spaced: bool = False
    unspaced: bool = False

    def thousands(self) -> list[re.Match[str]]:
        """The numbers whose commas separate thousands: those of ``(1,000, 2,000)``, but not of ``(1,200)``."""
        if self.unspaced or (self.is_list and not self.spaced):
            # No member of a list is 000.
            return [number for number in self.numbers if ",0" in number[0]]
        return self.numbers


def without_thousands(text: str) -> str:
    r"""The text without the commas in its numbers: ``1,000\pi`` is ``1000\pi``."""
    if not _IS_GROUPED.search(text):
        return text
    numbers = sorted((number.span() for number in _thousands(text)), reverse=True)
    for start, end in numbers:
        text = text[:start] + text[start:end].replace(",", "") + text[end:]
    return text


def _thousands(text: str) -> Iterator[re.Match[str]]:
    stack = [_Bracket(is_list=False)]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("(", "[", "\\{", "{"):
            stack.append(_Bracket(is_list=token != "{"))
        elif token in (")", "]", "\\}", "}"):
            if len(stack) > 1:
                yield from stack.pop().thousands()
        elif token[0] == ",":
            stack[-1].spaced |= len(token) > 1
            stack[-1].unspaced |= len(token) == 1
        else:
            stack[-1].numbers.append(match)
    for bracket in stack:
        yield from bracket.thousands()


def spread(text: str) -> str:
    """A number with commas as a list: ``100, 200`` for ``100,200``. Any other text is left as it is."""
    return text.replace(",", ", ") if _GROUPS.fullmatch(text) else text


def is_same_list(gold: str, answer: str) -> bool:
    """Whether a gold answer that was read as a number, 100,200,300, may be a list, and the answer has its members."""
    number = _GROUPS.fullmatch(gold)
    if number is None:
        return False
    groups = sorted(number[1].split(","))
    listed, grouped = _LIST.fullmatch(answer), _GROUPS.fullmatch(answer)
    if any(group[0] == "0" or len(group) < 3 for group in groups) or (grouped and len(groups) < MIN_GROUPS):
        return False
    match = listed or grouped
    return match is not None and sorted(re.findall("[0-9]+", match[1])) == groups
