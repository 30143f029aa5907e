"""Reads and writes JSON strictly, nested as deeply as it may be: deep documents without recursion."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Any JSON value: dict, list, str, int, float, bool or None.
Json = Any

# A document may be nested so deeply, far beyond what programs write and what many parsers take (Python's: 1,000).
# The bound is the stack of jsonschema_rs: 10,000 levels take below 10 MB of the 256 MB that deep documents get there.
MAX_DEPTH = 10_000
# The standard library's parser recurses in C, within the limits of Python's stack, and jsonschema_rs on the stack of
# the thread: 100 levels took less than half of the smallest stack tried, 256 KB. Schemas must keep to it, too.
SHALLOW = 100

SPACE = " \t\r\n"
_WHITE = re.compile(rf"[{SPACE}]*")
# A string that is never closed reaches to the end of the text, so that no part of it is read twice.
BRACKET_OR_STRING = re.compile(r'[\[{]|[\]}]|"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAY_BE_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
# The beginning of a string, number, true, false or null that more text could complete.
_PARTIAL = re.compile(
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*(?:\\(?:u[0-9a-fA-F]{0,3})?)?'
    r"|-|-?(?:0|[1-9]\d*)(?:\.|(?:\.\d+)?[eE][+-]?)|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?"
)


class NotJSON(ValueError):
    """No JSON can be read. The message says why in a few words, and quotes nothing of the text."""


class Unfinished(NotJSON):
    """The text ends within a document that more text could complete."""

    def __init__(self) -> None:
        super().__init__("the document is not finished")


class Parsed(NamedTuple):
    """A document, the text it was read from, and whether it is nested more than ``SHALLOW`` deep."""

    value: Json
    text: str
    deep: bool


def parse(text: str, max_depth: int = MAX_DEPTH) -> Parsed:
    """The one JSON document that a text is, read strictly.

    Refused besides what JSON does not allow: a key twice in one object, NaN and Infinity, numbers beyond the range of
    a double, nesting deeper than ``max_depth``, and strings that are not valid Unicode.

    Raises:
        Unfinished: the text is the beginning of a document.
        NotJSON: the text is anything else.
    """
    text = text.strip(SPACE)
    # Counting is quicker than measuring, and mostly enough.
    deep = text.count("[") + text.count("{") > SHALLOW and _depth(text, max_depth) > SHALLOW
    try:
        value = _read_nested(text) if deep else _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if text and not deep and _is_unfinished(text):
            raise Unfinished from error
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        raise NotJSON(reason[:1].lower() + reason[1:]) from error
    if _MAY_BE_SURROGATE.search(text) and any(_SURROGATE.search(string) for string in strings(value)):
        raise NotJSON("a string is not valid Unicode")
    return Parsed(value, text, deep)


def write(value: Json) -> str:
    """The JSON text of a value.

    Raises:
        TypeError, ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except RecursionError:
        return _write_nested(value)


def strings(value: Json) -> Iterator[str]:
    """All strings in a document, keys included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            yield from value
            waiting += value.values()


def _depth(text: str, limit: int) -> int:
    """How deeply the brackets of a text are nested."""
    depth = deepest = 0
    for token in BRACKET_OR_STRING.finditer(text):
        character = text[token.start()]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
            if depth > limit:
                raise NotJSON("it is nested too deeply")
        elif character in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotJSON("an object has the same key twice")
    return value


def _integer(digits: str) -> int:
    # Before int(), which takes time quadratic in the digits.
    _float(digits)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise NotJSON("a number is out of range")
    return value


def _constant(name: str) -> Json:
    raise NotJSON(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
# Reads the value that begins at an index, and tells where it ends.
_SCAN: Callable[[str, int], tuple[Json, int]] = vars(_DECODER)["scan_once"]


def _is_unfinished(text: str) -> bool:
    try:
        _read_nested(text)
    except Unfinished:
        return True
    except (NotJSON, json.JSONDecodeError):
        pass
    return False


def _read_nested(text: str) -> Json:
    """The document that a text is. The same as the standard library's parser, which is quicker, at any depth.

    Raises:
        Unfinished: the text is the beginning of a document.
        JSONDecodeError: the text is not a document.
        NotJSON: as ``_DECODER`` raises it.
    """
    unclosed: list[tuple[list, bool]] = []
    keys: list[str] = []
    at = _skip(text, 0)
    while True:
        # A value begins here.
        is_object = text.startswith("{", at)
        if is_object or text.startswith("[", at):
            at = _skip(text, at + 1)
            if not text.startswith("}" if is_object else "]", at):
                unclosed.append(([], is_object))
                if is_object:
                    at = _read_key(text, at, keys)
                continue
            value: Json = {} if is_object else []
            at += 1
        else:
            value, at = _read_scalar(text, at)
        at = _skip(text, at)
        while unclosed:
            members, is_object = unclosed[-1]
            members.append((keys.pop(), value) if is_object else value)
            if text.startswith(",", at):
                at = _skip(text, at + 1)
                if is_object:
                    at = _read_key(text, at, keys)
                break
            if not text.startswith("}" if is_object else "]", at):
                raise _unexpected(text, at, "Expecting ',' delimiter")
            unclosed.pop()
            value = _object(members) if is_object else members
            at = _skip(text, at + 1)
        else:
            if at < len(text):
                raise json.JSONDecodeError("Extra data", text, at)
            return value


def _read_key(text: str, at: int, keys: list[str]) -> int:
    if not text.startswith('"', at):
        raise _unexpected(text, at, "Expecting property name enclosed in double quotes")
    key, at = _read_scalar(text, at)
    at = _skip(text, at)
    if not text.startswith(":", at):
        raise _unexpected(text, at, "Expecting ':' delimiter")
    keys.append(key)
    return _skip(text, at + 1)


def _read_scalar(text: str, at: int) -> tuple[Json, int]:
    try:
        value, end = _SCAN(text, at)
    except (StopIteration, json.JSONDecodeError) as error:
        if at == len(text) or _PARTIAL.fullmatch(text, at):
            raise Unfinished from error
        if isinstance(error, StopIteration):
            raise json.JSONDecodeError("Expecting value", text, at) from error
        raise
    if end < len(text) and isinstance(value, (int, float)) and _PARTIAL.fullmatch(text, at):
        raise Unfinished
    return value, end


def _unexpected(text: str, at: int, message: str) -> ValueError:
    return Unfinished() if at == len(text) else json.JSONDecodeError(message, text, at)


def _skip(text: str, at: int) -> int:
    match = _WHITE.match(text, at)
    return match.end() if match else at


def _write_nested(value: Json) -> str:
    pieces: list[str] = []
    # Texts to write as they are, and values to write as JSON.
    waiting: list[tuple[bool, Any]] = [(False, value)]
    depth = 0
    while waiting:
        as_it_is, value = waiting.pop()
        if as_it_is:
            pieces.append(value)
            depth -= value in ("]", "}")
        elif not isinstance(value, (list, tuple, dict)) or not value:
            pieces.append(json.dumps(value, allow_nan=False))
        else:
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            brackets = "{}" if isinstance(value, dict) else "[]"
            members: list[tuple[bool, Any]] = [(True, brackets[0])]
            for index, member in enumerate(value):
                before = ", " if index else ""
                if isinstance(value, dict):
                    if not isinstance(member, str):
                        raise TypeError("keys must be strings")
                    members += [(True, f"{before}{json.dumps(member)}: "), (False, value[member])]
                else:
                    members += [(True, before), (False, member)]
            waiting += reversed([*members, (True, brackets[1])])
    return "".join(pieces)
