"""Finds the JSON documents in a completion: bare, in a fenced block, or inside prose.

Everything is linear in the text, whatever the text: a policy may write a million opening brackets.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from grpo_lightning.verifiers.json.reader import BRACKET_OR_STRING, MAX_DEPTH, SPACE, Json, NotJSON, Unfinished, parse

# More pieces of JSON than this are not an answer, and reading each of them would cost time.
MAX_PIECES = 500

# A bracket that opens JSON, also broken JSON such as {'a': 1}, and not the prose {x in S} or [see below]. At the end of
# the text, any that could still become JSON.
_OPENING = re.compile(
    rf"\{{[{SPACE}]*(?:[^\w\\\s]|\w+[{SPACE}]*:|\Z)"
    rf"|\[[{SPACE}]*(?:[^\w\\\s]|[0-9]|(?:true|false|null|NaN|Infinity)\b|(?:t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)?\Z)"
)
# The end of a line that opens or closes a fenced block. JSON never looks like this: a string has no line breaks.
_FENCE = re.compile(r"^[^`\n]*(?P<marks>```+)(?P<info>[ \t]*[\w.+-]+)?[ \t\r]*$", re.MULTILINE)
_OPENING_LINE = re.compile(r"(?P<marks>```+)[ \t]*[\w.+-]*[ \t\r]*\n")
# What surrounds a document without a word of prose: JSON's own tokens. Strings end with their line, open or closed.
# Only for match(), which never backtracks here: fullmatch() would take exponential time.
_JSON_TOKENS = re.compile(
    r"(?:[\s`*]+|[\]\[{},:]|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"?"
    r"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])|(?:true|false|null)\b)*"
)
_STRING = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"?')
# Marks of Markdown, and every kind of white space.
_LAYOUT = "`*" + "".join(filter(str.isspace, map(chr, range(0x3001))))
_BRACKETS = {"[": "]", "{": "}"}
_OPENED_BY = {"]": "[", "}": "{"}
_STRAY = "a part of other JSON is beside it"


class Document(NamedTuple):
    """A JSON document of a completion.

    Args:
        value: as it was read; ``None`` for one with a problem.
        text: how it is written.
        deep: whether it is nested more than ``SHALLOW`` deep.
        apart: whether it is a document whatever the schema asks for: in a fenced block, or without prose around it.
        problem: why it cannot count, in a few words, if it cannot: it is not finished, or JSON that belongs to no
            document follows it.
    """

    value: Json
    text: str
    deep: bool = False
    apart: bool = False
    problem: str = ""


class _Piece(NamedTuple):
    """What may be a document: its text, whether a fence or nothing surrounds it, and whether the text ends with it."""

    text: str
    apart: bool
    last: bool = False


def find_documents(text: str) -> list[Document]:
    """The JSON documents of a text in order of appearance, at least one.

    A fenced block counts if all of it is one document. In prose, every bracket that opens JSON starts a piece that
    ends with the matching bracket; a piece that is not JSON is passed over as a whole, so a document inside a string,
    or inside broken JSON, is never found. A bare string, number, true, false or null must be the whole text or block.

    A document that is not finished counts as one, with a problem: at the end of the text or of a fenced block, a piece
    that more text could complete. So does a document beside JSON that belongs to none, such as a bracket too many.

    Raises:
        NotJSON: there is no document, or there are too many pieces, or one nested too deeply to find its end.
    """
    surroundings, pieces = _split(text)
    prose = any(len(_tokens(part)) < len(part) for part in surroundings)
    found: list[Document] = []
    failure = NotJSON("no document was found")
    for (piece, apart, last), stray in zip(pieces, _strays(surroundings), strict=True):
        apart = apart or not prose
        try:
            parsed = parse(piece)
        except Unfinished as refusal:
            if apart or last:
                found.append(Document(None, piece.strip(SPACE), apart=apart, problem=str(refusal)))
            failure = refusal
        except NotJSON as refusal:
            if not piece and last:
                found.append(Document(None, "", apart=apart, problem=str(Unfinished())))
            failure = refusal
        else:
            found.append(Document(*parsed, apart, _STRAY if stray else ""))
    if not found:
        raise failure
    return found


def whole_document(text: str) -> Document:
    """The document that a text is, bare or in exactly one fenced block, with nothing but white space around it.

    Raises:
        NotJSON: the text is anything else.
    """
    text = text.strip(SPACE)
    fence = _OPENING_LINE.match(text)
    if fence and text.endswith(fence["marks"]):
        text = text[fence.end() : -len(fence["marks"])]
    return Document(*parse(text), apart=True)


def _split(text: str) -> tuple[list[str], list[_Piece]]:
    """The pieces of a text that may be documents, and the texts before, between and after them."""
    whole = text.strip(SPACE)
    if whole[:1] not in ("{", "["):
        try:
            parse(whole)
        except NotJSON:
            pass
        else:
            return ["", ""], [_Piece(whole, True)]
    surroundings: list[list[str]] = [[]]
    pieces: list[_Piece] = []
    for part in _parts(text):
        if isinstance(part, str):
            surroundings[-1].append(part)
        elif len(pieces) == MAX_PIECES:
            raise NotJSON("there are too many documents")
        else:
            pieces.append(part)
            surroundings.append([])
    return ["".join(parts) for parts in surroundings], pieces


def _parts(text: str) -> Iterator[str | _Piece]:
    start, fenced = 0, False
    for fence in _FENCE.finditer(text):
        closes = fenced and not fence["info"]
        inside = text[start : fence.start("marks")]
        if closes:
            yield _Piece(inside, True)
        else:
            # Also where a block was open: one that is never closed is prose.
            yield from _parts_of_prose(inside, False)
        start, fenced = fence.end(), not closes
    yield from _parts_of_prose(text[start:], True)
    if fenced and fence["info"] and not text[start:].strip():
        # Begun, and nothing written yet.
        yield _Piece("", True, True)


def _parts_of_prose(text: str, last: bool) -> Iterator[str | _Piece]:
    end = 0
    opening = _OPENING.search(text)
    while opening:
        yield text[end : opening.start()]
        end, closed = _closing(text, opening.start())
        yield _Piece(text[opening.start() : end], False, last and not closed)
        opening = _OPENING.search(text, end)
    yield text[end:]


def _closing(text: str, start: int) -> tuple[int, bool]:
    """The index after the bracket that closes the one at ``start``, or the text's length and False where none does."""
    depth = 0
    for token in BRACKET_OR_STRING.finditer(text, start):
        character = text[token.start()]
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise NotJSON("it is nested too deeply")
        elif character in "]}":
            depth -= 1
            if depth == 0:
                return token.end(), True
    return len(text), False


def _strays(surroundings: list[str]) -> Iterator[bool]:
    """For each piece, whether JSON that belongs to no document is beside it: a bracket, quote or comma too many.

    That is JSON's tokens and not a word, or a closing bracket. Brackets and quotes that the prose before a document has
    opened may be closed after it. A colon may continue a prompt that ends in "Answer".
    """
    first = surroundings[0].strip(_LAYOUT)
    quoted = len(surroundings) > 1 and first == '"' and surroundings[1].lstrip(_LAYOUT).startswith('"')
    stray = first not in ("", ":") and not quoted and len(_tokens(first)) == len(first)
    quotes = 0
    unclosed = {"[": 0, "{": 0}
    for before, after in itertools.pairwise(surroundings):
        quotes += before.count('"')
        for bracket, closer in _BRACKETS.items():
            unclosed[bracket] = max(unclosed[bracket] + before.count(bracket) - before.count(closer), 0)
        yield stray or _begins_with_stray(after.strip(_LAYOUT), quotes % 2 == 1, dict(unclosed))
        stray = False


def _begins_with_stray(text: str, quoted: bool, unclosed: dict[str, int]) -> bool:
    """Whether a text, which follows a document, begins with JSON that nothing before it has opened."""
    if quoted and text.startswith('"'):
        text = text[1:]
    tokens = _tokens(text)
    prose = len(tokens) < len(text)
    for token in _STRING.sub('"', tokens):
        bracket = _OPENED_BY.get(token)
        if bracket is None:
            if not prose and token not in _LAYOUT:
                return True
        elif unclosed[bracket] > 0:
            unclosed[bracket] -= 1
        else:
            return True
    return False


def _tokens(text: str) -> str:
    """What of JSON's tokens a text begins with."""
    match = _JSON_TOKENS.match(text)
    return match[0] if match else ""
