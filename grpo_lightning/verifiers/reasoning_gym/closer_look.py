"""A second look at answers that a scorer of reasoning-gym gives 1.0, where it gives that to wrong ones as well.

Read in reasoning-gym 0.1.25: the scorer of ``game_of_life_halting`` compares the truth of two texts, so every text is
right; ``coin_flip`` takes 0 for any small probability, ``complex_arithmetic`` takes ``nan`` for any number, and
``puzzle24`` takes any four numbers for those of the question, and 24.9 for 24. It and ``countdown`` do not count
numbers written as ``24e0``. Both data sets of integrals take ``Integral(...)`` of the question; ``gsm_symbolic`` reads
the first number, without its sign; and ``spell_backward`` takes some words that only begin right, by a rounding error.
A policy finds such an answer within a few steps.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Row = Mapping[str, Any]


def is_right(answer: str, row: Row) -> bool:
    """Whether an answer that the scorer gives 1.0 is right.

    Args:
        answer: its text.
        row: a row of the data set, with ``question``, ``answer`` and ``metadata``.
    """
    look = _LOOKS.get(row["metadata"].get("source_dataset"))
    return look is None or look(answer, row)


def _same_word(answer: str, row: Row) -> bool:
    return answer.strip().lower() == str(row["answer"]).lower()


def _near(answer: str, row: Row) -> bool:
    """The scorer allows a distance of 1e-4; here it is relative, for probabilities of 1e-5."""
    found, gold = (float(Fraction(text.replace(",", ""))) for text in (answer, row["answer"]))
    return math.isclose(found, gold, rel_tol=1e-3)


def _finite(answer: str, row: Row) -> bool:
    return "n" not in answer.lower()  # nan and inf


def _makes_24(answer: str, row: Row) -> bool:
    return _computes(answer, row["metadata"]["numbers"], 24)


def _makes_target(answer: str, row: Row) -> bool:
    return _computes(answer, row["metadata"]["numbers"], row["metadata"]["target"])


def _computes(answer: str, numbers: list[int], target: int) -> bool:
    """Whether an answer makes exactly this of these numbers, with + - * / and brackets."""
    if not re.fullmatch(r"[\d\s()*/+-]+", answer) or "**" in answer or "//" in answer:
        return False
    used = sorted(map(int, re.findall(r"\d+", answer)))
    return used == sorted(numbers) and _value(ast.parse(answer.strip(), mode="eval").body) == target


_OPERATIONS: dict[type, Callable[..., Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](_value(node.operand))
    return Fraction(ast.literal_eval(node))


def _one_number(answer: str, row: Row) -> bool:
    numbers = {Fraction(text) for text in re.findall(r"(?<!\w)-?\d+(?:\.\d+)?", answer)}
    return numbers == {Fraction(str(row["answer"]))}


def _integrated(answer: str, row: Row) -> bool:
    """Some gold answers have an integral themselves, which sympy could not solve."""
    answer, gold = ("".join(text.split()) for text in (answer, str(row["answer"])))
    return "Integral" not in answer or answer == gold


_LOOKS: dict[str, Callable[[str, Row], bool]] = {
    "game_of_life_halting": _same_word,
    "coin_flip": _near,
    "complex_arithmetic": _finite,
    "puzzle24": _makes_24,
    "countdown": _makes_target,
    "simple_integration": _integrated,
    "intermediate_integration": _integrated,
    "gsm_symbolic": _one_number,
    "spell_backward": _same_word,
}
