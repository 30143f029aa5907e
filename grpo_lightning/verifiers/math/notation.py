r"""The many ways in which the same answer is typeset: one layout for texts, one notation for expressions."""

from __future__ import annotations

import re

from grpo_lightning.verifiers.math.lists import without_thousands
from grpo_lightning.verifiers.math.numbers import unwrap
from grpo_lightning.verifiers.math.typeset import VULGAR, is_cut_off, lowered
from grpo_lightning.verifiers.math.units import is_unit

_IGNORED = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr)(?![A-Za-z])\.?|\\(?:displaystyle|textstyle|limits|small|large|Large|LARGE|huge|Huge|bf|it)(?![A-Za-z])"
    r"|(?<!\\)\\!"
)
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!\s*|\\[,;:! ])(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|[~\u00a0\u2009\u202f\s]+|(?<!\\)\$")
_SAME = {
    **dict.fromkeys(("\\geqslant", "\\geqq", "\\geq"), "\\ge"),
    **dict.fromkeys(("\\leqslant", "\\leqq", "\\leq"), "\\le"),
    **dict.fromkeys(("\\neq", "\\not="), "\\ne"),
    **dict.fromkeys(("\\lvert", "\\rvert", "\\vert", "\\mid"), "|"),
    **dict.fromkeys(("\\dbinom", "\\tbinom"), "\\binom"),
    **dict.fromkeys(("\\ldots", "\\cdots", "\\dotsc", "\\dotsb"), "\\dots"),
    **dict.fromkeys(("\\mod", "\\bmod"), "\\pmod"),
    **{"\\bot": "\\perp", "\\prime": "'", "\\lg": "\\log_{10}"},
    **dict.fromkeys(("\\dfrac", "\\tfrac", "\\cfrac"), "\\frac"),
    **dict.fromkeys(("\\operatorname", "\\textup"), "\\text"),
    **{"\\lt": "<", "\\gt": ">", "\\langle": "(", "\\rangle": ")", "\\lbrace": "\\{", "\\rbrace": "\\}"},
    **{
        "\\varnothing": "\\emptyset",
        "\\colon": ":",
        "\\rm": "",
        "\\vee": "\\lor",
        "\\wedge": "\\land",
    },
    **{"\\degree": "^\\circ", "\\rightarrow": "\\to", "\\backslash": "\\setminus"},
}
_COMMAND = re.compile(r"\\not=|\\[A-Za-z]+")
_GREEK = "alpha beta gamma delta epsilon zeta eta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
_SIGNS = str.maketrans(
    {
        **{
            "\u2212": "-",
            "\u2013": "-",
            "\u00d7": "\\times ",
            "·": "\\cdot ",
            "÷": "\\div ",
            "±": "\\pm ",
            "√": "\\sqrt ",
        },
        **{"π": "\\pi ", "θ": "\\theta ", "∞": "\\infty ", "°": "^\\circ ", "\u2032": "'"},
        **{sign: f"\\frac{{{parts[0]}}}{{{parts[1]}}}" for sign, parts in VULGAR.items()},
        **{"∠": "\\angle ", "△": "\\triangle "},
        **{letter: f"\\{name} " for letter, name in zip("αβγδεζηκλμνξρστφχψω", _GREEK.split(), strict=True)},
        **{"≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "⟨": "(", "⟩": ")"},
        **{
            "∈": "\\in ",
            "\u222a": "\\cup ",
            "∩": "\\cap ",
            "∅": "\\emptyset ",
            "\u211d": "\\mathbb{R}",
            "\u2228": "\\lor ",
        },
        **{"⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil "},
    }
)
_PRIME = re.compile(r"\^\s*(?:\{\s*('[\s']*)\}|('))")
_MODULUS = re.compile(r"\(?\s*\\pmod\s*(?:\{\s*(\w+)\s*\}|(\w+))\s*\)?")
_BOLD = re.compile(r"\\mathbf\s*\{([^{}]{2,}|[^{}]*\{[^{}]*\}[^{}]*)\}")
_FACE = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|bold)\s*\{([^{}\\]*)\}")
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_BASE = re.compile(rf"(?<=[0-9A-Z])_\s*\{{\s*({'|'.join(_BASES)})\s*\}}", re.IGNORECASE)
_NAMED = re.compile(r"(\\(?:triangle|angle))\s*\{([A-Za-z]+)\}")
_FRAC_DIGITS = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))\s*(?:\{([^{}]*)\}|([0-9A-Za-z]))")
_SINGLE = re.compile(r"(?<=[\^_])\s*\{\s*([A-Za-z0-9])\s*\}")
_CIRC = re.compile(r"\^\s*\{\s*\\circ\s*\}")
_NAME = re.compile(r"(?<![A-Za-z\\])[A-Z][a-z]{2,}")
_HALF_DAY = re.compile(r"(?<=[0-9])\s*([apAP])\.?\s?[mM](?![A-Za-z])\.?")
# Spaces matter only between two words or numbers.
_LOOSE = re.compile(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])")
_AFTER_COMMAND = re.compile(r"(\\[A-Za-z]+) +(?![A-Za-z])")

_GRID = r"\{(?:array|smallmatrix|matrix)\}"
_ARRAY = re.compile(
    rf"(?:[(\[]\s*)?\\begin{_GRID}(?:\{{[clr| ]*\}})?(.*?)(?:\\\\\s*)?\\end{_GRID}(?:\s*[)\]])?", re.DOTALL
)
_ROW = r"\\\\(?:\s*\[[0-9a-z. ]*\])?"
_COLUMN = re.compile(rf"\\begin\{{[pb]matrix\}}((?:[^&\\]|\\[A-Za-z]|{_ROW})*)\\end\{{[pb]matrix\}}")
# (\\pm 1, 0) is two points.
_PLUS_MINUS_POINT = re.compile(r"^\((|[^()]*,)\s*\\pm\s*([^(),\\]+|[^(),]*\})((?:,[^()\\]*)?)\)$")
_REMARK = re.compile(r"(?<=[0-9}])\s*\(\s*([A-Za-z][A-Za-z .]*[A-Za-z])\s*\)")
_UNIT = re.compile(
    r"(?<=[\w})])[\s~]*\\(?:text|mathrm)\s*\{[\s~]*((?:[A-Za-z ./]|\\cdot |\^\{?-?[1-4]\}?)+?)\s*\}"
    r"(?:\s*\^\s*\{?\s*[0-9]\s*\}?)?"
    r"(?=\s*(?:$|[,;)\]]|\\\}))"
)
_PLAIN_UNIT = re.compile(r"(?<=[\w})]) (?:[ckm]m|kg|ft|km/h|units?)(?:\^\{?[23]\}?)?$")
_NUMBER_SET = re.compile(r"\\math(?:bb|bf)\s*\{?\s*([CNQRZ])\s*\}?")
_WITHOUT = re.compile(r"\\mathbb\{R\}\s*[-/]\s*\\\{")
_ALL_REALS = re.compile(r"(?:\\text\s*\{\s*)?(?:the set of )?all real (?:numbers|values)(?:\s*\})?", re.IGNORECASE)
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:](.*)\\\}", re.DOTALL)
_NESTED = re.compile(r"[|:]|\\[{}]")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![A-Za-z])")


def layout(text: str) -> str:
    """The text of an answer without what only concerns its layout. Two answers with the same layout are the same."""
    if is_cut_off(text):
        text = text.replace("...", "\\dots ")
    text = _tidy(unwrap(text).replace("\\$", " "))
    for _ in range(3):
        text = _FACE.sub(r" \1 ", text)
    text = _BASE.sub(lambda match: f"_{{{_BASES.index(match[1].lower()) + 2}}}", text)
    text = _NAMED.sub(r"\1 \2", text).replace("{:}", ":")
    text = _FRAC_DIGITS.sub(lambda match: f"\\frac{{{match[1] or match[2]}}}{{{match[3] or match[4]}}}", text)
    text = _SINGLE.sub(r"\1", text).replace("{,}", ",")
    text = _HALF_DAY.sub(lambda match: f"{match[1].lower()}m", text)
    text = _NAME.sub(lambda match: match[0].lower(), text)
    return unwrap(_AFTER_COMMAND.sub(r"\1", _LOOSE.sub("", " ".join(text.split()))))


def notation(text: str) -> str:
    """An expression in the notation that the gate knows: matrices, sets, lists and units written in one way."""
    text = without_thousands(_BOLD.sub(r"{\1}", _tidy(unwrap(text))))
    text = _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", text)
    text = _PLUS_MINUS_POINT.sub(r"(\1\2\3),(\1-\2\3)", text.strip())
    text = _ALL_REALS.sub(r"\\mathbb{R}", _NUMBER_SET.sub(r"\\mathbb{\1}", text))
    text = _WITHOUT.sub(r"\\mathbb{R} \\setminus \\{", text)
    text = _REMARK.sub(lambda match: "" if len(match[1]) > 3 and is_unit(match[1]) else match[0], text)
    text = _PLAIN_UNIT.sub("", _UNIT.sub(lambda match: "" if is_unit(match[1]) else match[0], text).rstrip())
    if "\\circ" in text and not _TRIGONOMETRY.search(text):
        text = re.sub(r"\^\s*\\circ(?![A-Za-z])", "", text)
    builder = _BUILDER.fullmatch(text.strip())
    if builder and builder[1] in builder[2] and _RELATION.search(builder[2]) and not _NESTED.search(builder[2]):
        text = builder[2]
    return text.replace(";", ", ").strip()


def _tidy(text: str) -> str:
    """One command for each sign, no font sizes, plain spaces, no math delimiters."""
    text = _THOUSANDS.sub("", text.translate(_SIGNS))
    text = _COMMAND.sub(lambda match: _SAME.get(match[0], match[0]) + ("" if match[0] not in _SAME else " "), text)
    text = _CIRC.sub(r"^\\circ", _IGNORED.sub("", text))
    text = _MODULUS.sub(r" \\pmod{\1\2}", _SPACES.sub(" ", lowered(text)))
    return _SPACES.sub(" ", _PRIME.sub(lambda match: "".join((match[1] or match[2]).split()), text))


def as_point(latex: str, other: str) -> str:
    """A column as a point where it is compared with one; any other LaTeX as it is."""
    column = _COLUMN.fullmatch(latex) if other.startswith("(") else None
    if column is None or "\\end" in column[1]:
        return latex
    return f"({', '.join(entry.strip() for entry in re.split(_ROW, column[1]) if entry.strip())})"
