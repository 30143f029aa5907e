"""Finds misspelled keywords: JSON Schema takes an unknown word for an annotation, and asserts nothing by it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from grpo_lightning.verifiers.json.keywords import KEYWORDS, KIND_OF, KINDS, nodes
from grpo_lightning.verifiers.json.reader import Json

# Words that schemas use and that look like keywords.
_NO_MISTAKES = {
    *("example", "examples", "definitions", "$defs", "then", "else", "id", "$id", "minContains", "maxContains"),
    "num",
    *("$schema", "$comment", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"),
}
# These are near to words of other meanings: cost, form, constraints.
_TOO_NEAR = {"const", "format", "contains"}
# Words of other meanings are near to these, too: types, typeOf, item. Beside the keyword they are taken to be such.
_LONGEST_COMMON_KEYWORD = 5
# Shorter words are near to too many others. The cutoff lets pass "typ" and "tpye", but not "dependent".
_SHORTEST_MISTAKE = 3
_SHORTEST_KEYWORD = 4
_NEAR = 0.8
# What people write who remember another library, by the keywords that they may mean: the first that fits the type.
_BOUNDS = ("Length", "Items", "Properties")
_OTHER_WORDS: dict[str, tuple[str, ...]] = {
    **{word: ("minimum", *(f"min{of}" for of in _BOUNDS)) for word in ("min", "minvalue")},
    **{word: ("maximum", *(f"max{of}" for of in _BOUNDS)) for word in ("max", "maxvalue")},
    **{f"{bound}{word}": (f"{bound}Length",) for bound in ("min", "max") for word in ("len", "chars")},
    **{"exclusivemin": ("exclusiveMinimum",), "exclusivemax": ("exclusiveMaximum",), "divisibleby": ("multipleOf",)},
    **{"contain": ("contains",), "constant": ("const",), "enumeration": ("enum",), "formats": ("format",)},
    **{"regex": ("pattern",), "regexp": ("pattern",), "req": ("required",)},
    **{"dependency": ("dependencies",), "dependencys": ("dependencies",)},
}


def misspelled(schema: Json) -> Iterator[tuple[str, str]]:
    """The unknown words of a schema that look like a keyword, with that one."""
    for node in nodes(schema):
        for name, value in node.items():
            if name in KEYWORDS or name in _NO_MISTAKES or name.startswith("x-"):
                continue
            keyword = _meant(name, value, node)
            if keyword is not None:
                yield name, keyword


def _meant(name: str, value: Json, node: dict[str, Json]) -> str | None:
    """The keyword that a word is a misspelling of, if it would assert something there."""
    fitting = [
        keyword
        for keyword, (_, _, types) in KEYWORDS.items()
        if isinstance(value, types) and KIND_OF.get(keyword) in (None, *_kinds(node))
    ]
    plain = _plain(name)
    for keyword in _OTHER_WORDS.get(plain, ()):
        # A flag, such as {"constant": true}, is no value of a constant.
        if keyword in fitting and not (keyword == "const" and isinstance(value, bool)):
            return keyword
    for keyword in fitting:
        if _same_letters(plain, _plain(keyword)):
            return keyword
    if len(name) < _SHORTEST_MISTAKE:
        return None
    near = [
        keyword
        for keyword in fitting
        if len(keyword) >= _SHORTEST_KEYWORD
        and keyword not in _TOO_NEAR
        and not (keyword in node and len(keyword) <= _LONGEST_COMMON_KEYWORD)
        # A word of two: requiredXor, minimumAge.
        and not (name.startswith(keyword) and name[len(keyword)].isupper())
    ]
    found = difflib.get_close_matches(name, near, 1, _NEAR)
    return found[0] if found else None


def _plain(name: str) -> str:
    """A word in small letters without ``$``, underscores and hyphens, its properties in the plural."""
    plain = re.sub(r"[$_-]", "", name).lower()
    return re.sub(r"(property|propertys|props)$", "properties", plain)


def _same_letters(word: str, keyword: str) -> bool:
    """Whether a word has the letters of a keyword, with some doubled (nott) or in another order (cosnt)."""
    squeezed = re.sub(r"(.)\1+", r"\1", word)
    return squeezed == re.sub(r"(.)\1+", r"\1", keyword) or (
        word[:1] == keyword[:1] and sorted(word) == sorted(keyword)
    )


def _kinds(node: dict[str, Json]) -> list[str]:
    """The kinds of values that the type of a schema leaves."""
    types = node.get("type", list(KINDS))
    listed = types if isinstance(types, list) else [types]
    return ["number" if one == "integer" else one for one in listed if isinstance(one, str)]
