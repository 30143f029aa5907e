"""Reads JSON strictly, and finds the JSON documents in a completion: bare, in a fenced block, or inside prose.

Everything is linear in the text, whatever the text: a policy may write a million opening brackets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Any JSON value: dict, list, str, int, float, bool or None.
Json = Any

MAX_DEPTH = 100
# More pieces of JSON than this are no answer, and reading each of them would cost time.
MAX_PIECES = 500

_SPACE = " \t\r\n"
# A bracket that opens JSON, also broken JSON such as {'a': 1}, and not the prose {x in S} or [see below].
_OPENING = re.compile(
    rf"\{{[{_SPACE}]*(?:[^\w\\\s]|\w+[{_SPACE}]*:)|\[[{_SPACE}]*(?:[^\w\\\s]|[0-9]|(?:true|false|null|NaN|Infinity)\b)"
)
# A string that is never closed reaches to the end of the text, so that no part of it is read twice.
_TOKEN = re.compile(r'[\[{]|[\]}]|"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
# The end of a line that opens or closes a fenced block. JSON never looks like this: a string has no line breaks.
_FENCE = re.compile(r"^[^`\n]*(?P<marks>```+)(?P<info>[ \t]*[\w.+-]+)?[ \t\r]*$", re.MULTILINE)
_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")


class NotJSON(ValueError):
    """No JSON can be read. The message says why in a few words, and quotes nothing of the text."""


class Document(NamedTuple):
    """A JSON document of a completion, and whether it stands apart: in a fenced block, or as the whole text."""

    value: Json
    apart: bool


def parse(text: str) -> Json:
    """The one JSON document that a text is, read strictly.

    Refused besides what JSON does not allow: a key twice in one object, NaN and Infinity, numbers beyond the range of
    a double, nesting deeper than ``MAX_DEPTH``, and strings that are not valid Unicode.

    Raises:
        NotJSON: the text is anything else.
    """
    text = text.strip(_SPACE)
    if text[:1] in ("{", "["):
        _closing(text, 0)
    return _decode(text)


def find_documents(text: str) -> list[Document]:
    """The JSON documents of a text in order of appearance, at least one.

    A fenced block counts if all of it is one document. In prose, every bracket that opens JSON starts a piece that
    ends with the matching bracket; a piece that is no JSON is passed over as a whole, so a document inside a string,
    or inside broken JSON, is never found. A bare string, number, true, false or null must be the whole text or block.

    Raises:
        NotJSON: there is no document, or there are too many pieces, or one nested too deeply to find its end.
    """
    found: list[Document] = []
    failure = NotJSON("no document was found")
    for count, (piece, apart) in enumerate(_pieces(text)):
        if count == MAX_PIECES:
            raise NotJSON("there are too many documents")
        try:
            found.append(Document(parse(piece) if apart else _decode(piece), apart))
        except NotJSON as refusal:
            failure = refusal
    if not found:
        raise failure
    return found


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """What may be a document, and whether it stands apart."""
    whole = text.strip(_SPACE)
    if whole[:1] not in ("{", "["):
        try:
            _decode(whole)
        except NotJSON:
            pass
        else:
            yield whole, True
            return
    start, fenced = 0, False
    for fence in _FENCE.finditer(text):
        closes = fenced and not fence["info"]
        if closes:
            yield text[start : fence.start("marks")], True
        else:
            # Also where a block was open: one that is never closed is prose.
            yield from _pieces_of_prose(text[start : fence.start("marks")])
        start, fenced = fence.end(), not closes
    yield from _pieces_of_prose(text[start:])


def _pieces_of_prose(text: str) -> Iterator[tuple[str, bool]]:
    opening = _OPENING.search(text)
    while opening:
        end = _closing(text, opening.start())
        yield text[opening.start() : end], False
        opening = _OPENING.search(text, end)


def _closing(text: str, start: int) -> int:
    """The index behind the bracket that closes the one at ``start``, or the text's length where none does."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        character = text[token.start()]
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise NotJSON("it is nested too deeply")
        elif character in "]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return len(text)


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


def _decode(text: str) -> Json:
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        raise NotJSON(reason[:1].lower() + reason[1:]) from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise NotJSON("a string is not valid Unicode") from error
    return value
