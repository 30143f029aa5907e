r"""Finds the final answers a completion commits to: ``#### 42``, ``\boxed{42}``, "the answer is 42".

Every function is linear in the text, whatever the text: a policy may write a million opening braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

Format = Literal["hash", "boxed", "phrase", "bare"]

MAX_ANSWER_CHARS = 2_000
# More of a form than this are no final answer, and reading each of them would cost time.
MAX_ANSWERS = 64

# Exactly four: five are a Markdown heading of the fifth level.
_HASH = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
# What may end the line of the phrase, so that the answer is the next line.
_LINE_END = re.compile(r"[*_`]*[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"\.\s|\n")
_OPENING = re.compile(r"\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def find_answers(text: str, formats: Sequence[Format]) -> list[list[str]]:
    """The raw texts of the final answers, one list for each form that occurs, in order of appearance.

    ``####`` and ``\\boxed{}`` are read together, since an answer in one must not contradict the other. The phrase
    counts only where neither occurs, and the bare text only where the phrase does not occur either. An answer that
    is never closed is an empty text, which parses as nothing. Of more than ``MAX_ANSWERS`` of a form, only one more
    is returned.
    """
    found = []
    if "hash" in formats:
        found.append([match[1] for match in islice(_HASH.finditer(text), MAX_ANSWERS + 1)])
    if "boxed" in formats:
        found.append(list(islice(_boxed(text), MAX_ANSWERS + 1)))
    if "phrase" in formats and not any(found):
        sentences = (_sentence(text, match.end()) for match in _PHRASE.finditer(text))
        found.append(list(islice(sentences, MAX_ANSWERS + 1)))
    if "bare" in formats and not any(found) and text.strip():
        found.append([text])
    return [answers for answers in found if answers]


def _sentence(text: str, start: int) -> str:
    """What follows the phrase, up to the end of the sentence; or the whole line below, if nothing follows."""
    text = text[start : start + MAX_ANSWER_CHARS]
    break_ = _LINE_END.match(text)
    return text[break_.end() :].partition("\n")[0] if break_ else _SENTENCE_END.split(text, maxsplit=1)[0]


def _boxed(text: str) -> Iterator[str]:
    start = text.find("\\boxed")
    while start >= 0:
        start += len("\\boxed")
        yield _braced(text, start)
        start = text.find("\\boxed", start)


def _braced(text: str, start: int) -> str:
    """What stands in the braces that open at ``start``; empty where none open, or they do not close soon."""
    opening = _OPENING.match(text, start)
    if opening is None:
        return ""
    depth = 1
    for match in _BRACE.finditer(text, opening.end(), opening.end() + MAX_ANSWER_CHARS):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return text[opening.end() : match.start()]
    return ""
