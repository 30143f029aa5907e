"""What an answer is: a number, a name, an expression, or just a text; and when two answers to a completion agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from grpo_lightning.verifiers.math.extract import MAX_ANSWER_CHARS
from grpo_lightning.verifiers.math.lists import is_same_list, spread
from grpo_lightning.verifiers.math.notation import as_point, layout, notation
from grpo_lightning.verifiers.math.numbers import MAX_NUMBER_CHARS, Number, parse_number, same_number, unwrap
from grpo_lightning.verifiers.math.symbolic import NotAnExpression, is_single, literal, to_latex
from grpo_lightning.verifiers.math.typeset import exact_decimals, is_cut_off

# A gold answer of this kind is a value that got lost on the way, or a whole solution.
_LOST = re.compile(r"nan|-?inf|null|.*####.*", re.IGNORECASE | re.DOTALL)

_NAME = (
    r"\\?[A-Za-z]+(?:_\{?\w{1,3}\}?)?|[A-Za-z](?:\^\{-1\})?\([A-Za-z]\)|\([A-Za-z](?:,\s*[A-Za-z])+\)"
    # f(3), P(X=1), \angle A, |AB|, \text{Area}
    r"|(?:[fgh]|[A-Z])\([^()=]{1,20}(?:=[^()=]{1,20})?\)|m?\\angle\s*[A-Z]{1,3}|\|[A-Z]{2}\||\\overline\{[A-Z]{2}\}"
    r"|\\(?:text|textbf|mathrm)\s*\{[^{}=]{1,40}\}"
)
_VARIABLE = re.compile(rf"(?P<name>{_NAME})\s*(?:=|\\in(?![A-Za-z])|∈|\\approx(?![A-Za-z])|≈)(?P<value>[^=]+)")
_POINT = re.compile(r"(?P<name>[A-Z])\s*(?P<value>(?:\\left\s*)?\([^()=]+,[^()=]+\))")
_REVERSED = re.compile(r"(?P<value>[^=<>]+)=\s*(?P<name>[A-Za-z](?:_\{?\w{1,3}\}?)?)\s*")
# Two or three small letters are a product, unless they are short for a word.
_PRODUCT = re.compile(r"(?!(?:ans|gcd|lcm|hcf|max|min|sum|det|arg|avg|deg|sol|lim|age)$)[a-z]{2,3}")
# What only decorates a name, and a name in words, which may stand for any other one.
_DECORATION = re.compile(r"\\(?:overline|angle|text|textbf|mathrm)(?![A-Za-z])|m(?=\\angle)|[{}|\s]")
_DESCRIPTION = re.compile(r"(?=[A-Za-z]*[a-z])[A-Za-z]{2,}")
_ASSIGNED = re.compile(rf"(?P<name>{_NAME})\s*=(?P<value>[^=<>]+)")
# A choice that is named before its value: \textbf{(B)}\ 12.
_CHOICE = re.compile(r"^\s*\$?\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{\s*\(([A-J])\)\s*\}[\s~\\:]*(?=\\?[^\s\\}$])")
# A choice, a score or a date is not worked out.
_ONLY_LITERAL = re.compile(r"[A-Z]|[0-9]+(?:-[0-9]+)+|[0-9]+(?:/[0-9]+){2,}")
_IS_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_ALTERNATIVE = re.compile(r"\bor\b|\\lor(?![A-Za-z])|\\pm(?![A-Za-z])")
_SEPARATOR = re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\lor(?![A-Za-z]))|[,;]|[()\[\]{}]")


@dataclass(frozen=True)
class Answer:
    r"""One parsed answer. Of ``number``, ``literal`` and ``latex`` at most one is set; none for what is only a text.

    Args:
        raw: as it was written.
        number: a plain number.
        literal: a name, a choice, a ratio.
        latex: an expression that passed the gate. Of ``y = 2x`` it is ``2x``.
        variable: the name that the value was given, ``y`` of ``y = 2x``.
        text: the layout of the whole; empty where a number or a literal makes it superfluous.
    """

    raw: str
    number: Number | None = None
    literal: str | None = None
    latex: str | None = None
    variable: str | None = None
    text: str = ""


def split_variable(text: str) -> tuple[str | None, str]:
    r"""``("x", "5")`` for ``x = 5`` or ``x \in 5``, ``(None, text)`` for anything else. A chain is anything else.

    ``x = 1 or x = -2`` is ``("x", "1, -2")``, and so it is with roots that are numbered. ``x = 1, y = 2`` is the point
    ``("(x,y)", "(1, 2)")``.
    """
    text = exact_decimals(text)
    if is_cut_off(text):
        return None, text
    text = unwrap(text)
    match = _VARIABLE.fullmatch(text) or _REVERSED.fullmatch(text)
    if match and not _PRODUCT.fullmatch(match["name"].strip()):
        return match["name"].replace(" ", ""), match["value"]
    point = _POINT.fullmatch(text)
    if point:
        return point["name"], point["value"]
    if text.count("=") < 2:
        return None, text
    plain = notation(text)
    assigned = [_ASSIGNED.fullmatch(piece.strip()) for piece in _pieces(plain)]
    if len(assigned) < 2 or None in assigned:
        return None, text
    values = [(match["name"].strip(), match["value"].strip()) for match in assigned if match]
    names = {name.partition("_")[0] for name, _ in values}
    if len(names) == 1:
        return names.pop(), ", ".join(value for _, value in values)
    if len(names) == len(values) and not _ALTERNATIVE.search(plain):
        values.sort()
        return f"({','.join(name for name, _ in values)})", f"({', '.join(value for _, value in values)})"
    return None, text


def _pieces(text: str) -> Iterator[str]:
    """The members of a list; commas in brackets do not count."""
    depth, start = 0, 0
    for match in _SEPARATOR.finditer(text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            yield text[start : match.start()]
            start = match.end()
    yield text[start:]


@lru_cache(maxsize=16_384)
def parse_gold(answer: str) -> Answer:
    """The gold answer.

    Raises:
        ValueError: it is not an answer, but a value that got lost, a whole solution, or longer than an answer can be.
    """
    answer = _CHOICE.sub("", answer)
    number = parse_number(answer)
    if number is not None:
        return Answer(answer, number=number)
    variable, value = split_variable(answer)
    if variable is not None and (number := parse_number(value)) is not None:
        return Answer(answer, number=number, variable=variable)
    text = layout(answer)
    if not text or _LOST.fullmatch(text) or len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(
            f"MathVerifier cannot read the gold answer {answer[:200]!r}: it must be the final answer alone"
        )
    name = literal(answer)
    if name is not None and ("\\text" in answer or _ONLY_LITERAL.fullmatch(name)):
        return Answer(answer, literal=name, text=text)
    try:
        return Answer(answer, latex=to_latex(value), variable=variable, text=text)
    except NotAnExpression:
        return Answer(answer, literal=name, text=text)


def parse_answer(text: str, gold: Answer) -> Answer | None:
    """An answer of a completion, ``None`` where it cannot be read as one to this gold answer."""
    if len(text) > (MAX_NUMBER_CHARS if gold.number is not None else MAX_ANSWER_CHARS):
        return None
    if gold.latex is not None and "," in gold.latex:
        text = spread(text)
    number = parse_number(text)
    if gold.number is not None and "," in text and is_same_list(gold.raw, text):
        number = gold.number
    if number is not None:
        return Answer(text, number=number)
    choice = _CHOICE.match(text)
    if choice and _is_value(text[choice.end() :]):
        chosen = Answer(text, literal=choice[1])
        return chosen if gold.literal == choice[1] else parse_answer(text[choice.end() :], gold)
    plain = ""
    if gold.text and (plain := layout(text)) == gold.text:
        # As far as it is read, this is the gold answer.
        return Answer(text, None, gold.literal, gold.latex, gold.variable, plain)
    if gold.literal is not None:
        name = literal(text)
        return None if name is None else Answer(text, literal=name)
    variable, value = split_variable(text)
    if variable is not None and (number := parse_number(value)) is not None:
        return Answer(text, number=number, variable=variable)
    try:
        latex = to_latex(value)
    except NotAnExpression:
        # Where the gold answer is just a text, any text is an answer.
        only_text = gold.number is None and gold.latex is None and plain
        return Answer(text, text=plain) if only_text else None
    # Where one number is asked for, several values are a hedge: no answer at all.
    if gold.number is not None and not is_single(latex):
        return None
    return Answer(text, latex=latex, variable=variable, text="" if gold.number is not None else plain)


def _is_value(text: str) -> bool:
    try:
        return parse_number(text) is not None or is_single(to_latex(text))
    except NotAnExpression:
        return False


def same_answer(first: Answer, second: Answer) -> bool:
    """Whether two answers of one completion commit to the same."""
    if first.number is not None and second.number is not None:
        return same_number(first.number, second.number)
    if first.text and first.text == second.text:
        return True
    parsed = (first.literal, first.latex)
    return parsed == (second.literal, second.latex) != (None, None) and first.number == second.number


def same_unknown(gold: Answer, answer: Answer) -> bool:
    """Whether the two may be values of the same: a value without a name, or named in words, may be that of any name."""
    if gold.variable is None or answer.variable is None or gold.variable == answer.variable:
        return True
    names = [_DECORATION.sub("", name) for name in (gold.variable, answer.variable)]
    if names[0] == names[1] or any(_DESCRIPTION.fullmatch(name) for name in names):
        return True
    return "y" in names and any("(" in name for name in names)


def comparable(gold: Answer, answer: Answer) -> tuple[str, str] | None:
    r"""The LaTeX of both as it is to be compared; ``None`` where the two cannot be equal.

    ``y = 2x`` is compared with ``2x`` and ``f(x) = 2x`` as values, with ``2x - y = 0`` or ``x = y/2`` as equations.
    """
    assert gold.latex is not None
    latex = answer.latex if answer.number is None else number_latex(answer.number)
    if latex is None:
        return None
    if gold.variable != answer.variable:
        names = gold.variable, answer.variable
        if not same_unknown(gold, answer):
            return _equations(gold, answer)
        variable, other = (gold.variable, latex) if gold.variable else (answer.variable, gold.latex)
        if variable and not all(names) and "=" in other:
            return _equations(gold, answer)
        if variable and _IS_INEQUALITY.search(other) and variable not in other:
            return None
    return as_point(gold.latex, latex), as_point(latex, gold.latex)


def _equations(gold: Answer, answer: Answer) -> tuple[str, str] | None:
    try:
        return to_latex(unwrap(gold.raw)), to_latex(unwrap(answer.raw))
    except NotAnExpression:
        return None


def number_latex(number: Number) -> str:
    value = number.value / 100 if number.percent else number.value
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
