"""Compares two gated LaTeX expressions; runs in the symbolic worker only.

math-verify parses, and decides on the shape of sets, tuples, intervals and matrices. Values are compared here:
math-verify calls numbers equal that differ by less than 1e-15, so that 1/2004! = 1/2006!, takes any two equations
without a solution for the same, and spends seconds on trigonometry.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import Any

from grpo_lightning.verifiers.math.symbolic_values import DIGITS, TOLERANCE, Value, all_equal, are_close, values

# An "i" that belongs to no command is the imaginary unit; then nothing else is taken to be real.
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{0,2}i[A-Za-z]{0,2}(?![A-Za-z])")


# The parser learns its grammar as it goes, and SymPy what it knows of each symbol, so that the first text of each shape
# is slow. Every comparison starts from here, so each shape that answers often have is rehearsed: once with itself in
# another writing, real and complex.
_REHEARSAL = (
    (r"\frac{\sqrt{3}}{2}x^{2}+1-2x", r"1+\frac{\sqrt{3}x^2}{2}-x\cdot 2"),
    (r"\frac{1}{2}(a+b)-3xy", r"-3yx+\frac{b+a}{2}"),
    (r"\frac{a+b}{c}-3\sqrt{d}", r"-3\sqrt{d}+\frac{a}{c}+\frac{b}{c}"),
    (r"7mn^{2}-\frac{2k}{5}", r"7n^2m-\frac{2}{5}k"),
    (r"(x+1)^{2}(x-3)", r"x^{3}-x^{2}-5x-3"),
    (r"(x+i)(x-i)", r"x^2+1"),
    (r"2+3i", r"3i+2"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
    (r"(-\infty , 2)\cup [3, 5]", r"[3,5]\cup(-\infty,2)"),
    (r"\{1, -\sqrt[3]{2}\}", r"-\sqrt[3]{2}, 1"),
    (r"1,-1", r"\pm 1"),
    (r"\log_{2} 3+e^{2 x}\ln y-\sin^{2} x", r"e^xe^{x}\ln y+\log_2 3-1+\cos ^{2}x"),
    (r"\tan 2\theta", r"\frac{\sin 2\theta}{\cos 2\theta}"),
    (r"x^{2}+y^{2}=1", r"2y^{2}+2x^2=2"),
    (r"3x+4y-5z+100=0", r"-3x-4y+5z-100=0"),
    (r"y=-\frac{3}{4}x+2", r"3x+4y-8=0"),
    (r"x \ge 3", r"[3, \infty)"),
    (r"x<-2 \lor x>5", r"(-\infty, -2)\cup(5, \infty)"),
    (r"-1 < x \le \frac{7}{2}", r"(-1, \frac{7}{2}]"),
    (r"1, x_{1}|y|", r"|y|x_1, 1"),
    (r"\begin{pmatrix}1 & x \\ 3 & 4\end{pmatrix}", r"\begin{pmatrix}1&x\\ 3&4\end{pmatrix} "),
    (r"\binom{n}{2}+n!", r"n!+\frac{n(n-1)}{2}"),
    ("+".join("abcdefghjklmnopqrstuvwxy"), "+".join("yxwvutsrqponmlkjhgfedcba")),
    ("+".join("abcdefghijklmnopqrstuvwxyz"), "+".join("zyxwvutsrqponmlkjihgfedcba")),
)


def load() -> None:
    """Import math-verify and rehearse.

    Raises:
        ImportError: math-verify is not installed.
    """
    import math_verify  # noqa: F401

    for gold, answer in _REHEARSAL:
        outcome(gold, answer)


def parse(latex: str, is_complex: bool) -> Any:
    """The SymPy object of a gated LaTeX text. Raises whatever the parser raises."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import And, I, Or, Symbol

    for word, join in ((" \\lor ", Or), (" \\land ", And)):
        if word in latex:
            return join(*(parse(one, is_complex) for one in latex.split(word)), evaluate=False)
    # Without "units", which would take the t of 3t for one.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    expression = latex2sympy(
        latex,
        is_real=None if is_complex else True,
        normalization_config=normalization,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    return expression.subs(Symbol("i"), I) if is_complex else expression


def outcome(gold: str, answer: str) -> str:
    """``equal``, ``different``, ``unparseable`` (the answer), ``unparseable gold`` or ``too complicated``."""
    from math_verify import verify

    # Decided for the pair: x^2 + 1 is a real polynomial by itself, and not where it is compared with (x + i)(x - i).
    is_complex = any(_IMAGINARY.search(latex) or "z" in latex for latex in (gold, answer))
    try:
        expected = parse(gold, is_complex)
    except Exception:
        return "unparseable gold"
    if gold == answer:
        return "equal"
    try:
        actual = parse(answer, is_complex)
    except (MemoryError, RecursionError, OverflowError):
        return "too complicated"
    except Exception:
        return "unparseable"
    if _is_other_list(gold, answer, expected, actual):
        return "different"
    solutions = solution_set(expected), solution_set(actual)
    if solutions[0] is not None and solutions[1] is not None and _same_unknown(expected, actual):
        expected, actual = solutions
        if expected == actual:
            return "equal"
    try:
        equal = same_values(expected, actual)
        if equal and not _is_compared(expected, actual):
            # Killed from outside, if need be: math-verify's own timeout is a signal, and cannot stop big integers.
            equal = verify(expected, actual, timeout_seconds=None)
    except Exception:
        # SymPy raises whatever it likes on an expression that it cannot put numbers into.
        return "too complicated"
    return "equal" if equal else "different"


def _is_compared(expected: Any, actual: Any) -> bool:
    """Whether equal values are enough. Of other things, math-verify decides on the shape."""
    from sympy import And

    if isinstance(expected, And) and isinstance(actual, And):
        return True
    return _is_relation(expected) or (_is_scalar(expected) and _is_scalar(actual))


def solution_set(thing: Any) -> Any:
    """The set of numbers that a solved inequality, or several joined by and/or, describes; ``None`` for anything else.

    A set is one already. What is not solved (``x^2 < 4``) is none: copying the problem would be a solution.
    """
    from sympy import And, Intersection, Interval, Or, Set, Union, oo

    if isinstance(thing, Set):
        relations = thing.args if thing.is_FiniteSet and any(_is_relation(one) for one in thing.args) else ()
        return _of_listed(relations) if relations else thing.doit()
    if isinstance(thing, (And, Or)):
        parts = [solution_set(one) for one in thing.args]
        if isinstance(thing, And):
            # x < oo says nothing.
            parts = [part for part in parts if part != Interval(-oo, oo)]
        if any(part is None for part in parts):
            return None
        joined = Intersection(*parts) if isinstance(thing, And) else Union(*parts)
        # Each part must add something: "x > 2 or x > 3" is a hedge.
        if (len(parts) > 1 and any(part == joined for part in parts)) or (
            isinstance(thing, Or) and not all(a.is_disjoint(b) for a, b in combinations(parts, 2))
        ):
            return None
        return joined
    return _half_line(thing) if _is_relation(thing) else None


def _of_listed(relations: Any) -> Any:
    """The solutions of inequalities with commas between them: of all where that is possible, else of any."""
    from sympy import And, EmptySet, Intersection, Or

    parts = [_half_line(relation) if _is_relation(relation) else None for relation in relations]
    if any(part is None for part in parts) or len({symbol for one in relations for symbol in one.free_symbols}) > 1:
        return None
    join = Or if Intersection(*parts) is EmptySet else And
    return solution_set(join(*relations, evaluate=False))


def _half_line(relation: Any) -> Any:
    from sympy import Ge, Gt, Interval, Le, Lt, Ne, Reals, oo

    if relation.rhs.is_Symbol:
        relation = relation.reversed
    bound = relation.rhs
    if not relation.lhs.is_Symbol or not bound.is_number or not bound.is_extended_real:
        return None
    if isinstance(relation, Ne):
        return Reals - {bound}
    if isinstance(relation, (Gt, Ge)):
        return Interval(bound, oo, isinstance(relation, Gt), True)
    if isinstance(relation, (Lt, Le)):
        return Interval(-oo, bound, True, isinstance(relation, Lt))
    return None


def _same_unknown(first: Any, second: Any) -> bool:
    """Inequalities in x and in y are not the same; a set has no unknown."""
    symbols = [thing.free_symbols for thing in (first, second)]
    return all(len(found) <= 1 for found in symbols) and (not all(symbols) or symbols[0] == symbols[1])


def _is_other_list(gold: str, answer: str, expected: Any, actual: Any) -> bool:
    """Whether one is a set in braces and the other an ordered tuple, or the lists have not the same members as often.

    Parsed, a list is a set, and math-verify takes a set for a tuple's equal, as the braces may be omitted.
    """
    from sympy import FiniteSet, Interval, Tuple

    for latex, other in ((gold, actual), (answer, expected)):
        if latex.startswith("\\{") and isinstance(other, (Interval, Tuple)):
            return True
    if not any(isinstance(thing, FiniteSet) for thing in (expected, actual)):
        return False
    if not all(isinstance(thing, FiniteSet) or _is_scalar(thing) for thing in (expected, actual)):
        return False
    golds, answers = members(gold), members(answer)
    if golds is None or answers is None:
        return "\\pm" not in gold and "\\cup" not in gold and answer.count(",") > gold.count(",")
    return len(golds) != len(answers) or (Counter(golds) != Counter(answers) and _has_other_members(golds, answers))


def members(latex: str) -> list[str] | None:
    """The members of a list without braces; ``None`` where they cannot be told: a set has each member once."""
    if latex.startswith("\\{") or any(sign in latex for sign in ("\\pm", "\\cup", "\\cap", "\\setminus")):
        return None
    found, depth = [""], 0
    for character in latex:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [member.strip() for member in found]


def _has_other_members(golds: list[str], answers: list[str]) -> bool:
    """Whether two lists of the same length differ; only where a member occurs twice, since sets are compared later."""
    if len(set(golds)) == len(golds) and len(set(answers)) == len(answers):
        return False
    rest = [parse(answer, False) for answer in answers]
    for gold in golds:
        expected = parse(gold, False)
        equal = next((other for other in rest if same_values(expected, other)), None)
        if equal is None:
            return True
        rest.remove(equal)
    return False


def same_values(gold: Any, answer: Any) -> bool:
    """Equal in value. Of sets, tuples, intervals and matrices only the elements are compared, not their order."""
    if _is_relation(gold) and _is_relation(answer):
        return _same_relation(gold, answer)
    if _is_scalar(gold) and _is_scalar(answer):
        pairs = values(gold, answer)
        return all_equal(pairs) if pairs else bool(gold == answer)
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
    from sympy import Eq, N, Ne

    if not all(_is_scalar(side) for side in (gold.lhs, gold.rhs, answer.lhs, answer.rhs)):
        return bool(gold == answer)
    pairs = [(g, a) for g, a in values(gold.lhs - gold.rhs, answer.lhs - answer.rhs) if g.number != 0 or a.number != 0]
    if not pairs or any(g.number == 0 or a.number == 0 for g, a in pairs):
        return False
    # As numbers: SymPy would simplify each fraction of complex ones, which takes most of a comparison's time.
    ratios = [N(g.number / a.number, DIGITS) for g, a in pairs]
    if not all(are_close(ratio, ratios[0], TOLERANCE) for ratio in ratios):
        return False
    first_gold, first_answer = pairs[0]
    if not all_equal([(_product(g, first_answer), _product(first_gold, a)) for g, a in pairs[1:]]):
        return False
    if isinstance(gold, (Eq, Ne)):
        return type(gold) is type(answer)
    return type(answer) is (type(gold) if ratios[0] > 0 else type(gold.reversed))


def _product(first: Value, second: Value) -> Value:
    from sympy import N

    return Value(first.exact * second.exact, N(first.number * second.number, DIGITS))
