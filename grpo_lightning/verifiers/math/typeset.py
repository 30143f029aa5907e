r"""Rare LaTeX rewritten in common LaTeX, and repeating decimals as exact fractions, before anything else reads them."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DECIMALS = 40

# Fractions that are one sign.
VULGAR = dict(zip("½¼¾⅓⅔⅛⅜⅝⅞⅕", ("12", "14", "34", "13", "23", "18", "38", "58", "78", "15"), strict=True))
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_RAISED = re.compile(f"\u207b?[{_SUPERSCRIPTS}]+")
_FLAT = str.maketrans(f"{_SUPERSCRIPTS}\u207b", "0123456789-")

_RARE = re.compile(
    r"\\(?:over|choose|textcolor|color|nicefrac|sfrac|boldsymbol|bm|textnormal|hbox|begin|therefore|implies|Rightarrow)"
    r"(?![A-Za-z])"
)
_DISPLAY = re.compile(
    r"\\begin\{((?:align|aligned|gather|gathered|equation|multline|split|math|displaymath)\*?)\}(.*)\\end\{\1\}",
    re.DOTALL,
)
_CASES = re.compile(r"(?:\\left\s*\\\{\s*)?\\begin\{cases\}(.*?)\\end\{cases\}(?:\s*\\right\s*\.)?", re.DOTALL)
_COLOR = re.compile(r"\\(?:text)?color\s*\{[A-Za-z!0-9]*\}")
_COMMANDS = {
    **dict.fromkeys(("\\nicefrac", "\\sfrac"), "\\frac"),
    **dict.fromkeys(("\\boldsymbol", "\\bm"), "\\mathbf"),
    **dict.fromkeys(("\\textnormal", "\\hbox"), "\\text"),
}
_COMMAND = re.compile(r"\\[A-Za-z]+")
# {1 \over 2}, {10 \choose 3}, or without braces all of the text.
_INFIX = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}|^([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)$")
_THEREFORE = re.compile(r"\s*\\(?:therefore|implies|Rightarrow)(?![A-Za-z])")

_BEGINS_REPEATING = re.compile(r"\.[0-9]*(?:\\(?:overline|bar|dot|[lc]?dots)|\.\.|\u2026)")
_REPEATING = re.compile(
    r"([0-9]*\.[0-9]*)(?:\\(?:overline|bar)\s*(?:\{([0-9]+)\}|([0-9]))"
    r"|\\dot\s*(?:\{([0-9])\}|([0-9]))(?:([0-9]*)\\dot\s*(?:\{([0-9])\}|([0-9])))?)"
)
_DOTS = r"(?:\.\.\.|\u2026|\\[lc]?dots(?![A-Za-z]))"
# 0.333..., 0.1666..., 0.1212...: one digit three times or more, or several digits twice.
_CONTINUED = re.compile(rf"([0-9]*\.[0-9]{{0,40}}?)(?:([0-9])\2\2+|([0-9]{{2,6}}?)\3+){_DOTS}")
_CUT_OFF = re.compile(rf"\.[0-9]+{_DOTS}")


def uniform(text: str) -> str:
    r"""The text without display environments, colours and rare commands: ``{1 \over 2}`` is ``\frac{1}{2}``."""
    if not _RARE.search(text):
        return text
    display = _DISPLAY.fullmatch(text.strip())
    if display:
        text = ", ".join(line.strip() for line in display[2].replace("&", " ").split("\\\\") if line.strip())
    text = _CASES.sub(_listed, text)
    text = _COMMAND.sub(lambda match: _COMMANDS.get(match[0], match[0]), _COLOR.sub("", text))
    text = _INFIX.sub(_prefixed, text)
    therefore = _THEREFORE.match(text)
    return text[therefore.end() :] if therefore else text


def _listed(match: re.Match[str]) -> str:
    """x = 1, y = 2 for a system of solved equations. With ``&`` it is a function by cases."""
    lines = [line.strip().rstrip(",") for line in match[1].split("\\\\") if line.strip()]
    return ", ".join(lines) if "&" not in match[1] and all("=" in line for line in lines) else match[0]


def _prefixed(match: re.Match[str]) -> str:
    first, name, second = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
    return f"\\{'frac' if name == 'over' else 'binom'}{{{first.strip()}}}{{{second.strip()}}}"


def lowered(text: str) -> str:
    """The text with ``^{-5}`` for raised digits."""
    return _RAISED.sub(lambda match: f"^{{{match[0].translate(_FLAT)}}}", text)


def exact_decimals(text: str) -> str:
    r"""The text with ``\frac{1}{3}`` for ``0.\overline{3}``, ``0.\dot{3}`` and ``0.333...``."""
    if not _BEGINS_REPEATING.search(text):
        return text
    return _CONTINUED.sub(_continued, _REPEATING.sub(_marked, text))


def is_cut_off(text: str) -> bool:
    """Whether a decimal ends in dots: 3.14... is not 3.14."""
    return bool(_BEGINS_REPEATING.search(text) and _CUT_OFF.search(text))


def _marked(match: re.Match[str]) -> str:
    first, middle, last = match[4] or match[5], match[6] or "", match[7] or match[8] or ""
    return _fraction(match[1], match[2] or match[3] or first + middle + last, match[0])


def _continued(match: re.Match[str]) -> str:
    return _fraction(match[1], match[2] or match[3], match[0])


def _fraction(fixed: str, repeated: str, written: str) -> str:
    value = repeating(fixed, repeated)
    if len(fixed) + len(repeated) > MAX_DECIMALS:
        return written
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def repeating(fixed: str, repeated: str) -> Fraction:
    """0.1 with 6 repeated is 1/6."""
    decimals = len(fixed.partition(".")[2])
    start = Fraction(fixed.rstrip(".") or 0) if fixed[-1:] == "." else Fraction(fixed)
    return start + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**decimals)
