"""Rejects answers that are code, for the scorers of reasoning-gym that execute what they are given.

Nine scorers call ``eval`` or ``sympy.parse_expr``, which is ``eval``, on the answer. The sandbox keeps such an answer
from doing harm; this keeps it from deciding its own score, which is computed in the same process. What passes can
calculate with numbers and symbols, and can call nothing but functions of mathematics.
"""

from __future__ import annotations

import re

_LISTS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
_EXPRESSIONS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
# fmt: off
_FUNCTIONS = frozenset({
    "sqrt", "exp", "log", "ln", "sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "asin", "acos",
    "atan", "asinh", "acosh", "atanh", "abs", "Abs", "factorial", "gamma", "erf", "erfc", "erfi", "Ei", "Si", "Ci",
    "li", "Integral",
})
# fmt: on
_MAX_CHARS = 10_000
# An attribute, a name of Python's machinery, a comment or a line that continues, anything but ASCII.
_CODE = re.compile(r"\.\s*[A-Za-z_]|__|[\\#`@;]|[^\x00-\x7f]")
_BEFORE_BRACKET = re.compile(r"(\w+|[^\w\s]|^)\s*\(")
_OPERATORS = frozenset("+-*/%^,=<>!&|~:([{")


def is_executed(dataset: str) -> bool:
    """Return whether the data set's scorer executes answers."""
    return dataset in _LISTS or dataset in _EXPRESSIONS


def is_code(dataset: str, answer: str) -> bool:
    """Return whether an answer could do more than state a value when the data set's scorer executes it."""
    if dataset in _LISTS:
        return _suspicious(answer) or "(" in answer
    if dataset in _EXPRESSIONS:
        # The functions of sympy execute a string that they are given.
        return _suspicious(answer) or any(quote in answer for quote in "\"'") or not _calls_mathematics(answer)
    return False


def _suspicious(answer: str) -> bool:
    return len(answer) > _MAX_CHARS or _CODE.search(answer) is not None


def _calls_mathematics(answer: str) -> bool:
    """Whether each opening bracket groups, or belongs to a function of mathematics."""
    before = _BEFORE_BRACKET.findall(answer)
    return all(not word or word in _OPERATORS or word in _FUNCTIONS for word in before)
