r"""The gate before the symbolic check: lets through only what looks like one closed mathematical expression.

Answers come from a policy that is rewarded for finding holes, so everything is refused that is not known: LaTeX
commands, characters, words, long digits, deep nesting, towers of exponents. Operators that only state a calculation
(sums, integrals, limits, ``\gcd``) are refused too, or copying the problem would answer it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.verifiers.math.notation import layout, notation
from grpo_lightning.verifiers.math.typeset import exact_decimals, is_cut_off

MAX_CHARS = 400
MAX_DEPTH = 12
MAX_DIGITS = 40
MAX_POWER_DEPTH = 2
# The digits of an exponent or of a factorial's argument.
MAX_GROWTH_DIGITS = 4

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_FUNCTIONS = frozenset(
    {"sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"ln", "log", "exp", "pi"}
)
_COMMANDS = _FUNCTIONS | frozenset(
    f"frac binom infty cdot times div pm cup cap in le leq ge geq lt gt ne neq setminus emptyset "
    f"overline lfloor rfloor lceil rceil {_GREEK}".split()
)
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "vmatrix", "Bmatrix"})
_NO_ANSWER = frozenset({"nan", "inf", "null"})
_REFUSED_WORDS = frozenset({"or", "and", "not", "yes", "no", "nan", "inf", "is", "if"})
_ESCAPES = {"\\{": "\\{", "\\}": "\\}", "\\\\": "\\\\ ", "\\$": ""}
_LIST_WORD = re.compile(r",?\s*\\text\s*\{\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+")
_FACE = re.compile(r"\\(?:mathbf|mathrm|text|vec|bold)\s*\{\s*([A-Za-z])\s*\}")
_OR = re.compile(r",?\s*(?:\\text\s*\{\s*or\s*\}|\bor\b|\\lor(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
_AND = re.compile(r",?\s*(?:\\text\s*\{\s*and\s*\}|\band\b|\\land(?![A-Za-z])|\\cap(?![A-Za-z]))\s*")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
# A mixed number; before a symbol, the parser would take it for a product.
_MIXED = re.compile(
    r"(?<![\w.^}\)])([0-9]+)\s*\\frac\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
)
_TOKEN = re.compile(
    r"\\(?:begin|end)\{[A-Za-z]+\}|\\mathbb\{[CNQRZ]\}|\\[A-Za-z]+|\\."
    r"|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|[A-Za-z]+|\s+|.",
    re.DOTALL,
)
_CHARACTERS = frozenset("+-*/^_=<>()[]{}|!,&")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d\b|\bd\s*[a-z]\s*/\s*d\s*[a-z]\b")
# Without braces TeX takes one token, and everyone else a number or a sign and what follows.
_EXPONENT = re.compile(
    r"\^\s*(-?\s*(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z](?![A-Za-z]{2})|\\(?:alpha|beta|theta|lambda|mu|omega|phi|pi|infty)(?![A-Za-z])))"
)
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\}|\\?\w+)\s*\^")
_GROWTH = re.compile(rf"\^[\s{{(-]*[0-9]{{{MAX_GROWTH_DIGITS + 1},}}|[0-9]{{{MAX_GROWTH_DIGITS + 1},}}[\s)}}]*!|!\s*!")

_NOT_SINGLE = re.compile(r"[,=<>&]|\\(?:pm|in|cup|cap|lor|land|le|leq|ge|geq|lt|gt|ne|neq)(?![A-Za-z])")

# A choice, a name, a ratio, a score or a date, a numeral in another base.
_LITERAL = re.compile(
    r"\(?[A-Z]\)|[A-Za-z]{1,20}(?:[ -][A-Za-z]{1,20}){0,5}|[0-9]{1,9}(?::[0-9]{1,9})+"
    r"|[0-9]{1,9}(?:-[0-9]{1,9})+|[0-9]{1,9}(?:/[0-9]{1,9}){2,}|[0-9A-F]{1,30}_\{?[0-9]{1,2}\}?",
    re.ASCII,
)
_RATIO = re.compile(r"([0-9]+) to ([0-9]+)")


class NotAnExpression(ValueError):
    """The text is refused before anything symbolic sees it; the message says why."""


def literal(text: str) -> str | None:
    r"""The comparable text of an answer that is a name, a choice, a ratio or a numeral in another base, else ``None``.

    ``\text{East}`` is ``east``, ``(C)`` and ``\text{C}`` are ``C``, ``2:3`` and ``101_2`` are themselves.
    """
    if len(text) > MAX_CHARS:
        return None
    text = _RATIO.sub(r"\1:\2", layout(text))
    text = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    if not _LITERAL.fullmatch(text) or text.lower() in _NO_ANSWER or notation(text) == "\\mathbb{R}":
        return None
    text = text.strip("()").replace("{", "").replace("}", "")
    return text.lower() if len(text) > 1 and "_" not in text else text


def is_single(latex: str) -> bool:
    """Whether gated LaTeX is one value: no list, relation, set operation or plus-minus."""
    return not _NOT_SINGLE.search(latex)


def to_latex(text: str) -> str:
    """The answer as the LaTeX that the symbolic check reads, with exact fractions instead of decimals.

    Raises:
        NotAnExpression: the text is not an expression, or one beyond the caps.
    """
    if len(text) > MAX_CHARS:
        raise NotAnExpression("longer than an answer can be")
    text = exact_decimals(text)
    if is_cut_off(text):
        raise NotAnExpression("a decimal that continues")
    text = notation(text)
    for joint, word in ((_OR, " \\lor "), (_AND, " \\land ")):
        pieces = joint.split(text)
        if len(pieces) > 1 and all(_INEQUALITY.search(one) for one in pieces):
            return word.join(map(_gated, pieces))
    return _gated(text)


def _gated(text: str) -> str:
    text = _MIXED.sub(_improper, _LIST_WORD.sub(", ", _FACE.sub(r"\1", text)).strip().replace("**", "^"))
    if not text:
        raise NotAnExpression("empty")
    if _DERIVATIVE.search(text):
        raise NotAnExpression("a derivative, which has no value to compare")
    latex = _Writer().write(_EXPONENT.sub(r"^{\1}", text))
    if _TOWER.search(latex) or _GROWTH.search(latex):
        raise NotAnExpression("powers too large to check")
    return latex


def _improper(match: re.Match[str]) -> str:
    whole, over, under = int(match[1]), int(match[2] or match[3]), int(match[4] or match[5])
    return f"{{\\frac{{{whole * under + over}}}{{{under}}}}}" if over < under else match[0]


class _Writer:
    """Copies known tokens one by one, and follows the brackets."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.open: list[str] = []
        self.last = ""
        self.sets = 0

    def write(self, text: str) -> str:
        for match in _TOKEN.finditer(text):
            token = match[0]
            written = self._token(token)
            self.written.append(written)
            if not written.isspace():
                # The base of a logarithm may be beside a number.
                self.last = "base" if self.last == "_" else token
        if self.open:
            raise NotAnExpression("an unclosed bracket")
        return "".join(self.written).strip()

    def _token(self, token: str) -> str:
        if token.isspace():
            return " "
        if token[0] == "\\":
            return self._command(token)
        if token[0] in ".0123456789" and token != ".":
            return self._number(token)
        if token.isascii() and token.isalpha():
            return self._letters(token)
        if token not in _CHARACTERS:
            raise NotAnExpression("a character that no answer has")
        if token in "([{":
            return self._opening(token)
        if token in ")]}":
            return self._closing(token)
        if token == "_" and self.last[:1].isdigit():
            raise NotAnExpression("a subscript on a number")
        return {"*": "\\cdot ", ",": ", "}.get(token, token)

    def _command(self, token: str) -> str:
        if token in _ESCAPES:
            self.sets += (token == "\\{") - (token == "\\}")
            return _ESCAPES[token]
        if token.startswith(("\\begin", "\\end")):
            if token.partition("{")[2].rstrip("}") in _MATRICES:
                return token
        elif token.startswith("\\mathbb{"):
            return token
        elif token[1:] in _COMMANDS:
            return token + " "
        raise NotAnExpression("a LaTeX command that no answer has")

    def _number(self, token: str) -> str:
        if len(token) > MAX_DIGITS:
            raise NotAnExpression("too many digits")
        if self.last[-1:].isdigit():
            raise NotAnExpression("two numbers side by side")
        decimals = token.partition(".")[2]
        if not decimals:
            return token
        value = Fraction(token)
        fraction = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        # The braces of a set would make it a set in the set.
        return f"({fraction})" if self.sets else f"{{{fraction}}}"

    def _letters(self, token: str) -> str:
        if token in _FUNCTIONS:
            return f"\\{token} "
        if len(token) > 3 or token.lower() in _REFUSED_WORDS:
            raise NotAnExpression("words")
        return token

    def _opening(self, token: str) -> str:
        # sqrt(2) and x^(2) are written with braces in LaTeX.
        if token == "(" and self.last in ("^", "sqrt", "\\sqrt"):
            token = "^()" if self.last == "^" else "()"
        elif token == "{" and self.last == "^":
            token = "^{"
        self.open.append(token)
        if len(self.open) > MAX_DEPTH or sum(kind[0] == "^" for kind in self.open) > MAX_POWER_DEPTH:
            raise NotAnExpression("nested too deeply")
        return "{" if token[-1] in "){" else token

    def _closing(self, token: str) -> str:
        opening = self.open.pop() if self.open else ""
        if opening in ("()", "^()") and token == ")":
            return "}"
        # An interval may close with the other bracket: [0, 1).
        if (opening in ("{", "^{")) != (token == "}") or opening in ("", "()", "^()"):
            raise NotAnExpression("an unmatched bracket")
        return token
