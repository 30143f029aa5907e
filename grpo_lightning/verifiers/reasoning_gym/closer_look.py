"""A second look at answers that a scorer of reasoning-gym gives 1.0, where it gives that to wrong ones as well.

Read in reasoning-gym 0.1.25: the scorer of ``game_of_life_halting`` compares the truth of two texts, so every text is
right; ``coin_flip`` takes 0 for any small probability, ``complex_arithmetic`` takes ``nan`` for any number, and
``puzzle24`` takes any four numbers for those of the question. A policy finds such an answer within a few steps.
"""

from __future__ import annotations

import math
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


def _same_numbers(answer: str, row: Row) -> bool:
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(row["metadata"]["numbers"])


_LOOKS: dict[str, Callable[[str, Row], bool]] = {
    "game_of_life_halting": _same_word,
    "coin_flip": _near,
    "complex_arithmetic": _finite,
    "puzzle24": _same_numbers,
}
