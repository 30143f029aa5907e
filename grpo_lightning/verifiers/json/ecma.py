"""Patterns as JSON Schema has them, in ECMA-262's syntax, rewritten where the engines read or refuse them otherwise."""

from __future__ import annotations

import re
from typing import Any

from grpo_lightning.verifiers.json.keywords import NAMED
from grpo_lightning.verifiers.json.reader import Json

# Keywords whose values are documents.
VALUES = {"const", "enum", "default", "examples"}

_SURROGATES = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = rf"{_SURROGATES}|\\u\{{[0-9a-fA-F]+\}}|\\[pP]\{{[^}}]*\}}|\\k<\w+>|\\."
_CLASS = r"\[\^?(?:\\.|[^\]\\])*\]"
_TOKEN = re.compile(
    rf"(?P<escape>{_ESCAPE})|(?P<class>{_CLASS})|(?P<repeat>\{{[0-9]+(?:,[0-9]*)?\}})|(?P<brace>\{{)"
    r"|(?P<group>\((?!\?)|\(\?<(?P<name>\w+)>)|.",
    re.DOTALL,
)
_MEMBER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
# Escapes that stand for several characters, so they cannot end a range.
_SET = re.compile(r"\\[dDwWsSpP]")
# A whole text of some characters of one kind. With higher counts the engines' automata get too large.
_COUNTED = re.compile(rf"\^(?P<kind>\.|{_ESCAPE}|{_CLASS})\{{(?P<least>[0-9]+)(?P<most>,[0-9]*)?\}}\$", re.DOTALL)
_MOST_COUNTED = 1_000


def rewritten(schema: Json) -> Json:
    """A schema whose patterns mean the same to the engines as to ECMA-262."""
    if isinstance(schema, list):
        return [rewritten(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {name: _value(name, value) for name, value in schema.items()}
    if isinstance(schema.get("pattern"), str):
        changed |= _counted(schema["pattern"], schema) or {"pattern": rewritten_pattern(schema["pattern"])}
    if isinstance(schema.get("patternProperties"), dict):
        named = changed["patternProperties"]
        changed["patternProperties"] = {rewritten_pattern(name): part for name, part in named.items()}
    return changed


def _value(keyword: str, value: Json) -> Json:
    if keyword in VALUES:
        return value
    if keyword in NAMED and isinstance(value, dict):
        return {name: rewritten(part) for name, part in value.items()}
    return rewritten(value)


def _counted(pattern: str, schema: dict[str, Json]) -> dict[str, Any] | None:
    """``^.{1,100000}$`` as a pattern and bounds of the length, which no engine has to count."""
    match = _COUNTED.fullmatch(pattern)
    if match is None:
        return None
    least, most = int(match["least"]), match["most"]
    bounds = {"minLength": least}
    if most is None:
        bounds["maxLength"] = least
    elif most[1:]:
        bounds["maxLength"] = int(most[1:])
    own = {name: schema[name] for name in bounds if name in schema}
    if max(bounds.values()) <= _MOST_COUNTED or not all(type(value) in (int, float) for value in own.values()):
        return None
    for name, value in own.items():
        bounds[name] = max(value, bounds[name]) if name == "minLength" else min(value, bounds[name])
    return {"pattern": rewritten_pattern(f"^{match['kind']}*$"), **bounds}


def rewritten_pattern(pattern: str) -> str:
    """A pattern of ECMA-262 in the engines' syntax; what is wrong in both stays as it is."""
    tokens = list(_TOKEN.finditer(pattern))
    names = [token["name"] for token in tokens if token["group"]]
    return "".join(_token(token, pattern, names) for token in tokens)


def _token(token: re.Match[str], pattern: str, names: list[str | None]) -> str:
    text = token[0]
    if token["class"]:
        return _class(text)
    if token["brace"]:
        # What counts nothing is text: a{,3}
        return r"\{"
    if token["escape"]:
        if text.startswith(r"\k<") and text[3:-1] in names:
            # No engine takes names.
            return rf"(?:\{names.index(text[3:-1]) + 1})"
        if text == r"\0" and not pattern[token.end() : token.end() + 1].isdigit():
            return r"\x00"
        # Ends of words for the engines.
        return text[1:] if text in (r"\<", r"\>") else _character(text)
    return text


def _class(text: str) -> str:
    if text in ("[]", "[^]"):
        return r"[^\s\S]" if text == "[]" else r"[\s\S]"
    start = "[^" if text.startswith("[^") else "["
    members = _MEMBER.findall(text[len(start) : -1])
    written = []
    at = 0
    while at < len(members):
        if at + 2 < len(members) and members[at + 1] == "-":
            first, last = members[at], members[at + 2]
            is_range = not _SET.match(first) and not _SET.match(last)
            written += [_member(first), "-" if is_range else r"\-", _member(last)]
            at += 3
        else:
            written.append(_member(members[at]))
            at += 1
    return f"{start}{''.join(written)}]"


def _member(text: str) -> str:
    # Two hyphens subtract sets for the engines.
    return {r"\b": r"\x08", r"\0": r"\x00", "-": r"\-"}.get(text) or _character(text)


def _character(text: str) -> str:
    """A character that is written as a pair of surrogates as itself, anything else as it is."""
    if not re.fullmatch(_SURROGATES, text):
        return text
    high, low = int(text[2:6], 16), int(text[8:12], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
