"""Reads plain numbers exactly: 1,234 is a ``Fraction``, and so are $12.50, 50%, 1 1/2, 3e8 and 42 apples.

Only what is already a number is read, never what has still to be worked out: ``40 + 2`` and ``2^5`` are not plain
numbers. The one operation carried out is the division of a fraction.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_NUMBER_CHARS = 1_000

# Most answers look like this, and skip everything below.
_SIMPLE = re.compile(r"\$?(-?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?)\.?")

_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_CURRENCY = r"(?:(?:US|AU|CA)?\$|[€£¥₹¢]|Rs\.?|USD|EUR|GBP)"
# Single letters are variables as often as units, so only the common units among them are read.
_WORD = r"(?:[^\W\d_]{2,20}\.?|[mgshlL](?![^\W\d_]))(?:\^\{?[1-4]\}?|[²³])?"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s*{_CURRENCY}?\s*(?P<inner_sign>[+-]?)\s*
    (?:
        (?:(?P<whole>[0-9]+)\s+)?(?P<over>{_DECIMAL})\s*/\s*(?P<under>-?{_DECIMAL})
      | (?P<decimal>{_DECIMAL})(?:
            [eE](?P<e>[+-]?[0-9]{{1,3}})
          | \s*(?:\\times|\\cdot|[x\u00d7*\u00b7])\s*10\^\{{?(?P<ten>[+-]?[0-9]{{1,3}})\}}?
        )?
      | 10\^\{{?(?P<power>[0-9]{{1,3}})\}}?
    )
    (?:\s*(?P<percent>%|percent\b))?
    (?:\s*{_CURRENCY})?
    (?P<unit>(?:[ /-]*{_WORD}(?:[ /-]+{_WORD}){{0,5}})?)
    """,
    re.VERBOSE,
)
# 42xy is algebra, not 42 of something.
_PRODUCT = re.compile(r"[xyz]+|[abc]{2,3}")
# So is 2mn: of the short words right behind a number, these alone are units.
_BEHIND = re.compile("[A-Za-z]{2,3}(?![A-Za-z])")
_SHORT_UNIT = re.compile(
    "[mcdknu]m|in|ft|yd|mi|[km]g|lbs?|oz|[mcdk]l|cc|qt|pt|gal|sq|cu|hrs?|min|sec|[mn]s|[ap]m|st|nd|rd|th|[km]ph|[rb]pm|"
    "mpg|[kmg]?hz|k?pa|psi|atm|bar|mol|kj|cal|[km]w|k?wh|hp|ev|[km]v|ma|db|[kmgt]b|rad|deg|pts|cts?",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[^\W\d_]+")
# Words after a number that change its value, or that take it back.
_NOT_A_UNIT = re.compile(
    "or|and|nor|not|but|either|neither|maybe|perhaps|possibly|to|than|between|through|if|is|are|was|equals|minus|"
    "plus|times|over|divided|by|mod|squared|cubed|factorial|pi|sqrt|ln|log|exp|sin|cos|tan|half|halves|third|"
    "thirds|quarter|quarters|fourth|fourths|fifth|fifths|sixth|tenth|tenths|hundredth|hundredths|thousandth|"
    "thousandths|dozen|dozens|hundred|hundreds|thousand|thousands|million|millions|billion|billions|trillion|"
    "trillions|lakh|crore|negative|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|"
    "fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety",
    re.IGNORECASE,
)

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}\\]*)\}")
_DEGREES = re.compile(r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree)\s*(?:[CF]\b|\\text\{\s*[CF]\s*\})?")
_SPACE = "~\u00a0\u2009\u202f"
_LATEX_THOUSANDS = re.compile(rf"(?<=[0-9])(?:\{{,\}}|,\\!|\\[,;:! ]|[{_SPACE}])(?=[0-9]{{3}}(?![0-9]))")
_LATEX_SPACE = re.compile(rf"\\[,;: ]|\\q?quad\b|[{_SPACE}]")
_TYPESET = re.compile(rf"[\\{{°{_SPACE}]")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"))
# The minus sign and the en dash.
_DASHES = {0x2212: "-", 0x2013: "-"}
_EMPHASIS = " \t\r\n*_`"
# The number alone, before its unit: **42** apples.
_EMPHASISED = re.compile(r"\s*(\*\*|__|[*_`])([^*_`]+)\1(?=\s)")


class Number(NamedTuple):
    """An exact number, and whether it was written with a percent sign. ``value`` is 50 for 50%."""

    value: Fraction
    percent: bool


def unwrap(text: str) -> str:
    """The answer without what may stand around it: spaces, emphasis, math delimiters, a box, a full stop."""
    for _ in range(8):
        before = text
        text = text.strip(_EMPHASIS).rstrip(".,;").rstrip(_EMPHASIS)
        for opening, closing in _WRAPPERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
                text = text[len(opening) : len(text) - len(closing)]
                break
        if text == before:
            break
    return text


def parse_number(text: str) -> Number | None:
    """The plain number in a raw answer, or ``None`` where it is anything else.

    Digits other than 0 to 9 are not read, and neither are infinity and NaN. A comma separates thousands only between
    groups of three digits, and a mixed number needs a proper fraction.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    emphasised = _EMPHASISED.match(text)
    text = (emphasised[2] + text[emphasised.end() :] if emphasised else text).strip(_EMPHASIS)
    simple = _SIMPLE.fullmatch(text)
    if simple:
        return Number(Fraction(simple[1].replace(",", "")), False)
    match = _NUMBER.fullmatch(_plain(unwrap(text)))
    if not match or not is_unit(match["unit"]):
        return None
    behind = _BEHIND.match(match["unit"])
    if behind and not _SHORT_UNIT.fullmatch(behind[0]):
        return None
    value = _value(match)
    if value is None or (match["sign"] and match["inner_sign"]):
        return None
    return Number(-value if "-" in match["sign"] + match["inner_sign"] else value, match["percent"] is not None)


def same_number(first: Number, second: Number) -> bool:
    """Equal by value. Where only one is a percentage, 50% also equals 50: data sets ask "what percentage" and give 50.

    That is no hole, since units are never checked and the digits must still be right.
    """
    if first.value == second.value:
        return True
    if first.percent == second.percent:
        return False
    return _absolute(first) == _absolute(second)


def _absolute(number: Number) -> Fraction:
    return number.value / 100 if number.percent else number.value


def _plain(text: str) -> str:
    """LaTeX that only decorates a number, written plainly."""
    text = text.translate(_DASHES).replace("\\displaystyle", "")
    if _TYPESET.search(text):
        text = _LATEX_THOUSANDS.sub(",", text).replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
        text = _DEGREES.sub(" degrees", text)
        text = _TEXT.sub(r" \1", text)
        text = _LATEX_SPACE.sub(" ", text)
        text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
        text = re.sub(r"^([+-])\s+", r"\1", text.strip())
    return text.strip(_EMPHASIS)


def is_unit(text: str) -> bool:
    """Whether words after a value leave it as it is."""
    return not any(_NOT_A_UNIT.fullmatch(word) or _PRODUCT.fullmatch(word) for word in _LETTERS.findall(text))


def _value(match: re.Match[str]) -> Fraction | None:
    if match["power"]:
        return Fraction(10) ** int(match["power"])
    if match["decimal"]:
        exponent = int(match["e"] or match["ten"] or 0)
        return _fraction(match["decimal"]) * Fraction(10) ** exponent
    over, under = _fraction(match["over"]), _fraction(match["under"])
    if under == 0:
        return None
    if match["whole"] is None:
        return over / under
    proper = 0 <= over < under and over.denominator == under.denominator == 1
    return int(match["whole"]) + over / under if proper else None


def _fraction(decimal: str) -> Fraction:
    return Fraction(decimal.replace(",", ""))
