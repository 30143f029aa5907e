"""Compares what a program gave with what was expected, outside of any test's text; and shows both to people."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any, NamedTuple

from .plain import PLAIN_TYPES

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
# No number of a task has more; Python's own limit on reading integers is 4300.
_MAX_DIGITS = 1000


class Allowance(NamedTuple):
    """How far numbers may be off; texts are compared as they are.

    Args:
        rel_tol: as a part of the expected number.
        abs_tol: the absolute tolerance, always applied.
    """

    rel_tol: float = 0.0
    abs_tol: float = 0.0

    def same_output(self, given: str, expected: str) -> bool:
        """Whether an output is the expected one, but for spaces at the ends of lines and empty lines at the end.

        With an allowance, lines are compared word by word, and words that are numbers as numbers.
        """
        ours, theirs = _lines(given), _lines(expected)
        if ours == theirs:
            return True
        if not (self.rel_tol or self.abs_tol) or len(ours) != len(theirs):
            return False
        pairs = ((one.split(), other.split()) for one, other in zip(ours, theirs, strict=True))
        return all(len(one) == len(other) and all(map(self._same_word, one, other)) for one, other in pairs)

    def _same_word(self, given: str, expected: str) -> bool:
        if given == expected:
            return True
        if not (_is_number(given) and _is_number(expected)):
            return False
        if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(expected):
            # Counts, remainders and the like: an allowance is for what is written as a fraction on one side at least.
            return int(given) == int(expected)
        return self._close(float(given), float(expected))

    def _close(self, given: float, expected: float) -> bool:
        if not (math.isfinite(given) and math.isfinite(expected)):
            return False
        return given == expected or abs(given - expected) <= max(self.rel_tol * abs(expected), self.abs_tol)

    def same_value(self, given: Any, expected: Any) -> bool:
        """Whether a result is the expected one, which is of JSON's types; a tuple is as good as a list.

        ``True`` is not as good as 1: a program that only says yes has not counted.
        """
        if isinstance(given, (list, tuple)) and isinstance(expected, list):
            return len(given) == len(expected) and all(map(self.same_value, given, expected))
        if isinstance(given, dict) and isinstance(expected, dict):
            return given.keys() == expected.keys() and all(self.same_value(given[key], expected[key]) for key in given)
        if float in (type(given), type(expected)) and {type(given), type(expected)} <= {int, float}:
            try:
                return self._close(float(given), float(expected))
            except OverflowError:
                return False
        if type(given) is bool and type(expected) is not bool:
            return False
        return type(given) in PLAIN_TYPES and bool(given == expected)


def with_number_keys(values: list[Any]) -> list[Any]:
    """Values of JSON, with numbers for the keys of those objects whose keys are all whole numbers."""
    return [_with_number_keys(value) if isinstance(value, dict) else value for value in values]


def _with_number_keys(value: dict[str, Any]) -> dict[Any, Any]:
    return {int(key): item for key, item in value.items()} if all(map(_INTEGER.fullmatch, value)) else value


def _is_number(word: str) -> bool:
    return len(word) <= _MAX_DIGITS and _NUMBER.fullmatch(word) is not None


def _lines(text: str) -> list[str]:
    """Lines without what cannot be seen: spaces at their ends, empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


class _Shown(reprlib.Repr):
    """Short texts of plain data. An object of the program is not asked for its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 300
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 20

    def repr1(self, x: Any, level: int) -> str:
        if type(x).__module__.startswith("sandbox") or type(x).__name__ == "Handle":
            return "<an object of the program>"
        return super().repr1(x, level)


def shown(value: object) -> str:
    """A value as people read it."""
    try:
        return _Shown().repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
