"""Compares two gated LaTeX expressions; runs in the symbolic worker only.

math-verify parses, and decides on the shape of sets, tuples, intervals and matrices. Values are compared here, at fixed
exact points and to a relative tolerance: math-verify calls numbers equal that differ by less than 1e-15, so that
1/2004! = 1/2006!, takes any two equations without a solution for the same, and spends seconds on trigonometry.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

DIGITS = 30
TOLERANCE = 1e-20
# Any points will do that no formula singles out, exact ones since those cannot lose digits. Neighbours, which two
# symbols get, take every pair of signs: sqrt(x^2) is not x.
POINTS = ((17, 23), (-41, 29), (-13, 37), (53, 31), (67, 43), (-71, 59))
# "i" alone is the imaginary unit; then nothing else is taken to be real.
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")


# The parser learns its grammar as it goes, so that the first text of each shape is slow.
_REHEARSAL = (
    r"\frac{\sqrt{3}}{2}x^{2}+1",
    r"\frac{1}{2}(a+b)-3xy",
    r"\left(3, \frac{\pi}{2}\right)",
    r"(-\infty , 2)\cup [3, 5]",
    r"\{1, -\sqrt[3]{2}\}",
    r"\log_{2} 3+e^{2 \pi i}-\sin^{2} x",
    r"x^{2}+y^{2}=1",
    r"x \ge 3",
    r"1, x_{1}|y|",
    r"\begin{pmatrix}1 & x \\ 3 & 4\end{pmatrix}",
)


def load() -> None:
    """Import math-verify and rehearse.

    Raises:
        ImportError: math-verify is not installed.
    """
    import math_verify  # noqa: F401

    for latex in _REHEARSAL:
        outcome(latex, latex + " ")


@lru_cache(maxsize=64)
def parse(latex: str) -> Any:
    """The SymPy object of a gated LaTeX text. Raises whatever the parser raises."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import I, Symbol

    # Without "units", which would take the t of 3t for one.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    imaginary = bool(_IMAGINARY.search(latex))
    expression = latex2sympy(
        latex,
        is_real=None if imaginary or "z" in latex else True,
        normalization_config=normalization,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    return expression.subs(Symbol("i"), I) if imaginary else expression


def outcome(gold: str, answer: str) -> str:
    """``equal``, ``different``, ``unparseable`` (the answer) or ``too complicated``."""
    from math_verify import verify

    expected = parse(gold)
    if gold == answer:
        return "equal"
    try:
        actual = parse(answer)
    except (MemoryError, RecursionError, OverflowError):
        return "too complicated"
    except Exception:
        return "unparseable"
    if _is_other_list(gold, answer, expected, actual):
        return "different"
    try:
        equal = same_values(expected, actual)
        if equal and not (_is_scalar(expected) and _is_scalar(actual)) and not _is_relation(expected):
            # Killed from outside, if need be: math-verify's own timeout is a signal, and cannot stop big integers.
            equal = verify(expected, actual, timeout_seconds=None)
    except (MemoryError, RecursionError, OverflowError):
        return "too complicated"
    return "equal" if equal else "different"


def _is_other_list(gold: str, answer: str, expected: Any, actual: Any) -> bool:
    """Whether one is a set in braces and the other an ordered tuple, or the answer repeats what the gold has once.

    Parsed, a list is a set, and math-verify takes a set for a tuple's equal, as the braces may be left out.
    """
    from sympy import FiniteSet, Interval, Tuple

    for latex, other in ((gold, actual), (answer, expected)):
        if latex.startswith("\\{") and isinstance(other, (Interval, Tuple)):
            return True
    return isinstance(actual, FiniteSet) and "\\pm" not in gold and answer.count(",") > gold.count(",")


def same_values(gold: Any, answer: Any) -> bool:
    """Equal in value. Of sets, tuples, intervals and matrices only the elements are compared, not their order."""
    if _is_relation(gold) and _is_relation(answer):
        return _same_relation(gold, answer)
    if _is_scalar(gold) and _is_scalar(answer):
        pairs = _values(gold, answer)
        return all(_close(g, a) for g, a in pairs) if pairs else bool(gold == answer)
    golds, answers = _parts(gold), _parts(answer)
    if len(golds) == len(answers) == 1 and golds[0] is gold and answers[0] is answer:
        return bool(gold == answer)
    return all(any(same_values(g, a) for a in answers) for g in golds) and all(
        any(same_values(g, a) for g in golds) for a in answers
    )


def _is_matrix(thing: Any) -> bool:
    return bool(getattr(thing, "is_Matrix", False))


def _is_scalar(thing: Any) -> bool:
    from sympy import Expr

    return isinstance(thing, Expr) and not _is_matrix(thing)


def _is_relation(thing: Any) -> bool:
    from sympy.core.relational import Relational

    return isinstance(thing, Relational)


def _parts(thing: Any) -> list[Any]:
    """The elements of a matrix, interval, set, tuple or conjunction; the thing itself where it has none."""
    from sympy import Interval

    if _is_matrix(thing):
        return list(thing.doit())
    if isinstance(thing, Interval):
        return [thing.start, thing.end]
    return [thing] if _is_scalar(thing) or not thing.args else list(thing.args)


def _same_relation(gold: Any, answer: Any) -> bool:
    """Two equations are the same when they differ by a constant factor; inequalities also need its sign."""
    from sympy import Eq, Ne

    if not all(_is_scalar(side) for side in (gold.lhs, gold.rhs, answer.lhs, answer.rhs)):
        return bool(gold == answer)
    pairs = [(g, a) for g, a in _values(gold.lhs - gold.rhs, answer.lhs - answer.rhs) if g != 0 or a != 0]
    if not pairs or any(a == 0 for _, a in pairs):
        return False
    ratios = [g / a for g, a in pairs]
    if not all(_close(ratio, ratios[0]) for ratio in ratios):
        return False
    if isinstance(gold, (Eq, Ne)):
        return type(gold) is type(answer)
    return type(answer) is (type(gold) if ratios[0] > 0 else type(gold.reversed))


def _close(first: Any, second: Any) -> bool:
    """Relatively close, however small or large: these are SymPy numbers, which do not underflow."""
    return bool(abs(first - second) <= TOLERANCE * max(abs(first), abs(second)))


def _values(first: Any, second: Any) -> list[tuple[Any, Any]]:
    """Both expressions at every point where both are finite; empty where they share no such point."""
    from sympy import I, N, Rational, Symbol

    symbols = sorted(first.atoms(Symbol) | second.atoms(Symbol), key=str)
    pairs = []
    for shift in range(len(POINTS) if symbols else 1):
        at = {
            symbol: Rational(*POINTS[(i + shift) % len(POINTS)]) + (0 if symbol.is_real else I / 7)
            for i, symbol in enumerate(symbols)
        }
        values = [N(expression.subs(at).doit(), DIGITS) for expression in (first, second)]
        if all(value.is_number and value.is_finite for value in values):
            pairs.append((values[0], values[1]))
    return pairs
