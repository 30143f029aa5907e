"""Values of SymPy expressions at fixed exact points, and when two are equal; runs in the symbolic worker only.

Two expressions are equal when they have equal values at every point. Rational values are compared exactly. Others are
compared to more digits than any number in them has, so that no decimal number passes for the irrational one near it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

# A first look tells most unequal values apart.
DIGITS = 30
TOLERANCE = 1e-20
# Digits of the second look, beyond the largest number: three times as many as a decimal may have.
FURTHER_DIGITS = 120
# Points of the second look: a difference too small for the first one is not made by the point.
FURTHER_LOOKS = 3
# What rounding may cost of them.
LOST_DIGITS = 20
# Any points will do that no formula singles out, exact ones since those cannot lose digits. Neighbours, which two
# symbols get, take every pair of signs: sqrt(x^2) is not x.
POINTS = ((17, 23), (-41, 29), (-13, 37), (53, 31), (67, 43), (-71, 59))
# An absolute value, a root or an inverse function has pieces, which may meet far away.
FAR_POINTS = ((115, 12), (-211, 23), (1009, 7), (-2003, 13), (-20011, 17), (30011, 29))
# Floors and ceilings change at whole numbers alone, so that there they are tried, too: with multiples, squares, signs.
WHOLE_POINTS = tuple((number, 1) for number in (4, 7, 9, 10, 15, 25, 36, -6, -9))
WHOLE_NAMES = frozenset("kmnN")
# Numbers of an expression on either side of which pieces are looked for.
MAX_NUMBERS = 4


class Value(NamedTuple):
    """The value of an expression at a point: exactly, and to ``DIGITS`` digits."""

    exact: Any
    number: Any


def values(first: Any, second: Any) -> list[tuple[Value, Value]]:
    """Both expressions at every point where both are finite; empty where they share no such point."""
    from sympy import I, Integer, Rational, Symbol

    symbols = sorted(first.atoms(Symbol) | second.atoms(Symbol), key=str)
    points = _points(first, second)
    whole = _whole_symbols(first, second)
    wholes = [Integer(number) for number, under in (*WHOLE_POINTS, *points) if under == 1]
    pairs = []
    for shift in range(len(points) if symbols else 1):
        at = {
            symbol: wholes[(i + shift) % len(wholes)]
            if symbol in whole
            else Rational(*points[(i + shift) % len(points)]) + (0 if symbol.is_real else I / 7)
            for i, symbol in enumerate(symbols)
        }
        pair = _value(first, at), _value(second, at)
        if all(value.number.is_number and value.number.is_finite for value in pair):
            pairs.append(pair)
    return pairs


def _value(expression: Any, at: dict[Any, Any]) -> Value:
    from sympy import N

    exact = expression.xreplace(at).doit()
    return Value(exact, N(exact, DIGITS))


def _points(first: Any, second: Any) -> tuple[tuple[int, int], ...]:
    """Where to evaluate: far away and beside the numbers that occur, too, if an expression has pieces."""
    from sympy import ceiling, floor

    points: tuple[tuple[int, int], ...] = POINTS
    if any(map(_has_pieces, (first, second))):
        points += FAR_POINTS
        points += tuple(
            (sign * number + step, 1) for number, sign, step in product(_numbers(first, second), (1, -1), (1, -1))
        )
    if any(side.has(floor, ceiling) for side in (first, second)):
        points += WHOLE_POINTS
        points += tuple((times * number, 1) for number, times in product(_numbers(first, second), (1, -1, 2)))
    return points


def _whole_symbols(*expressions: Any) -> set[Any]:
    """The symbols that stand for whole numbers: in an exponent of -1, or by custom inside of a floor or ceiling."""
    from sympy import Pow, ceiling, floor

    whole: set[Any] = set()
    for expression in expressions:
        for power in expression.atoms(Pow):
            if power.base == -1:
                whole |= power.exp.free_symbols
        for rounded in expression.atoms(floor, ceiling):
            whole |= {symbol for symbol in rounded.free_symbols if str(symbol) in WHOLE_NAMES}
    return whole


def _has_pieces(expression: Any) -> bool:
    from sympy import Abs, Pow, acos, asin, atan, ceiling, floor, log

    if expression.has(Abs, floor, ceiling, log, asin, acos, atan):
        return True
    return any(
        power.exp.is_Rational and not power.exp.is_Integer and power.base.free_symbols
        for power in expression.atoms(Pow)
    )


def _numbers(*expressions: Any) -> list[int]:
    """The largest whole numbers that occur, also over and under fractions."""
    from sympy import Rational

    rationals = set().union(*(expression.atoms(Rational) for expression in expressions))
    numbers = {abs(int(part)) for rational in rationals for part in (rational.p, rational.q)}
    return sorted(numbers - {0, 1}, reverse=True)[:MAX_NUMBERS]


def all_equal(pairs: Sequence[tuple[Value, Value]]) -> bool:
    """Whether the values of each pair are the same number."""
    return all(_agree(*pair) for pair in pairs) and all(_are_equal(*pair) for pair in pairs[:FURTHER_LOOKS])


def _agree(first: Value, second: Value) -> bool:
    if first.exact.is_Rational and second.exact.is_Rational:
        return bool(first.exact == second.exact)
    return are_close(first.number, second.number, TOLERANCE)


def _are_equal(first: Value, second: Value) -> bool:
    from sympy import N

    difference = first.exact - second.exact
    if difference.is_Rational:
        return bool(difference == 0)
    digits = FURTHER_DIGITS + max((number.bit_length() for number in _numbers(first.exact, second.exact)), default=0)
    size = max(_size(first.number), _size(second.number))
    return bool(_size(N(difference, DIGITS, maxn=digits)) * 10 ** (digits - LOST_DIGITS) <= size)


def are_close(first: Any, second: Any, tolerance: float) -> bool:
    """Relatively close, however small or large: these are SymPy numbers, which do not underflow."""
    return bool(_size(first - second) <= tolerance * max(_size(first), _size(second)))


def _size(number: Any) -> Any:
    """The larger of the real and the imaginary part, which SymPy has sooner than the absolute value."""
    if number.is_Float or number.is_Rational:
        return abs(number)
    return max(abs(part) for part in number.as_real_imag())
