"""Reads plain numbers exactly: 1,234 is a ``Fraction``, and so are $12.50, 50%, 1 1/2, 3e8, 2^10 and 42 apples.

Only what is already a number is read, never what has still to be worked out: ``40 + 2`` is not a plain number. Two
notations are worked out, because answers are written in them: a fraction, and one power of two literals.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from grpo_lightning.verifiers.math.typeset import VULGAR, exact_decimals, is_cut_off, lowered, repeating, uniform
from grpo_lightning.verifiers.math.units import is_unit

MAX_NUMBER_CHARS = 1_000
# More digits than this are not worked out of a power.
MAX_POWER_DIGITS = 1_000

# Most answers look like this, and skip everything below.
_SIMPLE = re.compile(r"\$?(-?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?)\.?")

_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
# Every sign of Unicode's category of currencies, with letters before a dollar; the codes of ISO 4217 in use.
_CODES = (
    "AED AFN AMD ARS AUD AZN BDT BGN BHD BIF BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK "
    "DJF DKK DOP DZD EGP ERN ETB EUR FJD GBP GEL GHS GMD GNF GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IQD IRR ISK JMD "
    "JOD JPY KES KGS KHR KMF KPW KRW KWD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MUR MVR MWK MXN MYR MZN "
    "NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RMB RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SOS SRD "
    "SYP SZL THB TJS TMT TND TTD TWD TZS UAH UGX USD UYU UZS VND XAF XOF YER ZAR ZMW"
).replace(" ", "|")
_SIGNS = (
    "[$¢£¤¥\u058f\u060b\u09f2\u09f3\u0af1\u0bf9\u0e3f\u17db\u20a0-\u20cf\ufdfc\ufe69\uff04\uffe0\uffe1\uffe5\uffe6]"
)
_SHORT_CURRENCY = r"(?:Rs|Rp|Fr|kr|zł|Kč|RM|TL|руб|лв|S/)\.?(?![^\W\d_])"  # noqa: RUF001
_CURRENCY = rf"(?:[A-Z]{{1,3}}\$|{_SIGNS}|(?:{_CODES})\$?(?![A-Za-z])|{_SHORT_CURRENCY}|R(?=[0-9]))"
# Single letters are variables as often as units, so only the common units among them are read.
_ASIAN = "[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"
_SINGLE = r"[mgshlL](?![^\W\d_])|(?<=degrees[ ])[CFK]\b"
_WORD = rf"(?:[^\W\d_]{{2,20}}\.?|{_SINGLE}|o'clock|[ap]\.m\.?|{_ASIAN})(?:\^\{{?-?[1-4]\}}?|[²³])?"
_WORDS = rf"(?:an?[ ])?{_WORD}(?:(?:[ /-]+(?:an?[ ])?|\s*(?:\\cdot|·)\s*){_WORD}){{0,5}}"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s*{_CURRENCY}?\s*(?P<inner_sign>[+-]?)\s*
    (?:
        (?:(?P<whole>[0-9]+)\s+)?(?P<over>{_DECIMAL})\s*/\s*(?P<under>-?{_DECIMAL})
      | (?P<fixed>[0-9]*\.[0-9]*)\((?P<round>[0-9]+)\)
      | (?P<base>{_DECIMAL}|\((?:-?{_DECIMAL})\))\s*(?:\^|\*\*)\s*
            (?:\{{\s*(?P<braced>-?[0-9]{{1,4}})\s*\}}|\((?P<bracketed>-?[0-9]{{1,4}})\)|(?P<exponent>[0-9]{{1,4}}))
      | (?P<decimal>{_DECIMAL})(?:
            [eE](?P<e>[+-]?[0-9]{{1,3}})
          | \s*(?:\\times|\\cdot|[x\u00d7*\u00b7])\s*10\^\{{?(?P<ten>[+-]?[0-9]{{1,3}})\}}?
        )?
    )
    (?:[\s-]*(?P<percent>%|\uff05|percent\b|per[ -]cent\b|pct\b))?
    (?:\s*{_CURRENCY}|/-)?
    (?P<unit>(?:[ /-]*{_WORDS})?(?:\s*\(\s*{_WORDS}\s*\))?)
    """,
    re.VERBOSE,
)

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|mbox|operatorname|underline)\s*\{([^{}\\]*)\}"
)
# A single letter in upright type is a unit, unless it is a magnitude or a constant (k, M, B, i, e).
_UPRIGHT_UNIT = re.compile(r"[ ~]*[NVAWJFCHLSmgshl](?:[·./ ][NVAWJFCHLSKmgshl]|\^-?[1-4])*[ ~]*")
_DEGREES = re.compile(
    r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree)(?:\s*(?:[CF]\b|\\(?:text|mathrm)\{[\s~]*[CF]\s*\}))?"
)
_STYLE = re.compile(r"\\(?:displaystyle|left|right|bf|rm|it|small|large|Large|LARGE|huge|Huge)(?![A-Za-z])")
_SPACE = "~\u00a0\u2009\u202f"
_LATEX_THOUSANDS = re.compile(rf"(?<=[0-9])(?:\{{,\}}|,\\! *|\\[,;:! ]|[{_SPACE}])(?=[0-9]{{3}}(?![0-9]))")
_LATEX_SPACE = re.compile(rf"\\[,;: ]|\\q?quad\b|[{_SPACE}]")
_LATEX_CURRENCY = {
    "\\$": "$",
    "\\%": "%",
    "\\pounds": "£",
    "\\yen": "¥",
    "\\euro": "€",
    "\\texteuro": "€",
    "\\cent": "¢",
}
_LATEX_SIGN = re.compile(r"\\[$%]|\\(?:pounds|yen|euro|texteuro|cent)(?![A-Za-z])")
_AFTER_DIGIT = re.compile("(?<=[0-9])[\u207b⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TYPESET = re.compile(rf"[\\{{°{_SPACE}⁰¹²³⁴⁵⁶⁷⁸⁹]")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
# The minus sign and the en dash; fractions that are one sign.
_SIGNS_OF_ONE = {0x2212: "-", 0x2013: "-"} | {ord(sign): f" {parts[0]}/{parts[1]}" for sign, parts in VULGAR.items()}
_EMPHASIS = " \t\r\n*_`"
# The number alone, before its unit: **42** apples.
_EMPHASISED = re.compile(r"\s*(\*\*|__|[*_`])([^*_`]+)\1(?=\s)")
# A comma would make it a pair.
_BRACKETED = re.compile(r"\(([^(),;]*)\)|\(\(([^(),;]*)\)\)")


class Number(NamedTuple):
    """An exact number, and whether it was written with a percent sign. ``value`` is 50 for 50%."""

    value: Fraction
    percent: bool


def unwrap(text: str) -> str:
    """The answer without what may stand around it: spaces, emphasis, math delimiters, a box, a full stop."""
    for _ in range(8):
        before = text
        text = text.strip(_EMPHASIS).rstrip(".,;").rstrip(_EMPHASIS).lstrip("=:")
        for opening, closing in _WRAPPERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
                text = text[len(opening) : len(text) - len(closing)]
                break
        box = _BOX.match(text)
        if box and text.endswith("}"):
            text = text[box.end() : -1]
        if text == before:
            common = uniform(text) if "\\" in text else text
            if common == text:
                break
            text = common
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
    if text.find(".", 0, len(text) - 1) >= 0:
        text = exact_decimals(text)
        if is_cut_off(text):
            return None
    text = " ".join(_plain(unwrap(text)).split())
    while text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    bracketed = _BRACKETED.fullmatch(text)
    text = (bracketed[1] or bracketed[2] or "").strip() if bracketed else text
    match = _NUMBER.fullmatch(text)
    if not match or not is_unit(match["unit"].lstrip("("), not match["unit"].lstrip("(")[:1].isalpha()):
        return None
    value = _value(match)
    if value is None or (match["sign"] and match["inner_sign"]):
        return None
    return Number(-value if "-" in match["sign"] + match["inner_sign"] else value, match["percent"] is not None)


def same_number(first: Number, second: Number) -> bool:
    """Equal by value. Where only one is a percentage, 50% also equals 50: data sets ask "what percentage" and give 50.

    That is not a hole, since units are never checked and the digits must still be right.
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
    text = text.translate(_SIGNS_OF_ONE)
    if _TYPESET.search(text):
        text = _STYLE.sub("", text).rstrip("\\")
        text = _LATEX_THOUSANDS.sub(",", text).replace("\\!", "")
        text = _LATEX_SIGN.sub(lambda match: _LATEX_CURRENCY[match[0]], text)
        text = _DEGREES.sub(" degrees", text)
        text = _TEXT.sub(lambda match: " unit" if _UPRIGHT_UNIT.fullmatch(match[1]) else f" {match[1]}", text)
        text = _LATEX_SPACE.sub(" ", text)
        text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
        text = _AFTER_DIGIT.sub(lambda match: lowered(match[0]), text)
        text = re.sub(r"^([+-])\s+", r"\1", text.strip())
    return text.strip(_EMPHASIS)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["base"]:
        return _power(match["base"].strip("()"), int(match["braced"] or match["bracketed"] or match["exponent"]))
    if match["decimal"]:
        exponent = int(match["e"] or match["ten"] or 0)
        return _fraction(match["decimal"]) * Fraction(10) ** exponent
    if match["fixed"]:
        return repeating(match["fixed"], match["round"])
    over, under = _fraction(match["over"]), _fraction(match["under"])
    if under == 0:
        return None
    if match["whole"] is None:
        return over / under
    proper = 0 <= over < under and over.denominator == under.denominator == 1
    return int(match["whole"]) + over / under if proper else None


def _power(base: str, exponent: int) -> Fraction | None:
    value = _fraction(base)
    if (value == 0 and exponent <= 0) or len(base) * abs(exponent) > MAX_POWER_DIGITS:
        return None
    return value**exponent


def _fraction(decimal: str) -> Fraction:
    return Fraction(decimal.replace(",", ""))
