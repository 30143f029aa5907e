r"""Finds the final answers a completion commits to: ``#### 42``, ``\boxed{42}``, ``<answer>42</answer>``, a phrase.

Every function is linear in the text, whatever the text: a policy may write a million opening braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

Format = Literal["hash", "boxed", "tag", "phrase", "bare"]

MAX_ANSWER_CHARS = 2_000
# More of a form than this are not a final answer, and reading each of them would cost time.
MAX_ANSWERS = 64

# Exactly four: five are a Markdown heading of the fifth level.
_HASH = re.compile(r"(?<!#)####(?!#)([^\n<]*(?:<(?!/answer>)[^\n<]*)*)", re.IGNORECASE)
_LABEL = re.compile(r"[\s*_]*(?:the\s+)?(?:final\s+)?answer[*_]*(?:\s+is\b)?[*_\s]*:?", re.IGNORECASE)
_TAG = re.compile(r"<answer>", re.IGNORECASE)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?<![^\W_])ans(?:wer)?[*_`]*(?:\s+(?:is|equals|would be|should be|must be)\b[*_`]*[ \t]*:?|\s*[:=])"
    # A heading on a separate line, in whatever emphasis.
    r"|^[ \t]*(?:#{1,3}|#{5,6}|[*_]+)[ \t]*(?:\*\*|__)?(?:the\s+)?(?:final\s+)?answer[ \t*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
# What may end the line of the phrase, so that the answer is the next line.
_LINE_END = re.compile(r"[*_`]*[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"\.\s|\n")
# Mathematics set on separate lines.
_DISPLAY = re.compile(r"[*_`\s]*(?:\\\[|\$\$)")
_DISPLAY_END = re.compile(r"\\\]|\$\$")
_ALTERNATIVE = re.compile(r"[\s,;.*_`]*(?:or|and|alternatively|maybe|perhaps|possibly)\b", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_OPENING = re.compile(r"\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# Without braces TeX would take one token; what is meant is all up to the end of the formula or sentence.
_UNBRACED = re.compile(r"[ \t]*([^\s{}][^\n{}]*?)(?=\$|\\\)|\\\]|\.\s|\.?$|\n)", re.MULTILINE)


class Answers(NamedTuple):
    """The raw texts of one form, in order of appearance."""

    form: Format
    texts: list[str]


def find_answers(text: str, formats: Sequence[Format]) -> list[Answers]:
    """The final answers, for each form that occurs.

    ``####``, ``\\boxed{}`` and ``<answer>`` are read together, since an answer in one must not contradict the other.
    The phrase counts only where none of them occurs, and the bare text only where the phrase does not occur either. An
    answer that is never closed is an empty text, which parses as nothing. Of more than ``MAX_ANSWERS`` of a form, only
    one more is returned.
    """
    found: list[Answers] = []
    if "hash" in formats and "####" in text:
        found.append(_first("hash", (_unlabelled(match[1]) for match in _HASH.finditer(text))))
    if "boxed" in formats and "\\" in text:
        found.append(_first("boxed", _boxed(text)))
    if "tag" in formats and "<" in text:
        found.append(_first("tag", _tagged(text, formats)))
    if "phrase" in formats and not any(answers.texts for answers in found):
        found.append(_first("phrase", (_sentence(text, match.end()) for match in _PHRASE.finditer(text))))
    if "bare" in formats and text.strip() and not any(answers.texts for answers in found):
        found.append(Answers("bare", [text]))
    return [answers for answers in found if answers.texts]


def _first(form: Format, texts: Iterator[str]) -> Answers:
    return Answers(form, list(islice(texts, MAX_ANSWERS + 1)))


def _unlabelled(text: str) -> str:
    """``#### Answer: 5`` is ``#### 5``."""
    label = _LABEL.match(text)
    return text[label.end() :] if label else text


def _tagged(text: str, formats: Sequence[Format]) -> Iterator[str]:
    """The text in each pair of tags, where it holds neither ``####`` nor a box, which are found anyway."""
    marked = [*(["####"] if "hash" in formats else []), *(["\\boxed", "\\fbox"] if "boxed" in formats else [])]
    opening = _TAG.search(text)
    while opening:
        closing = _TAG_END.search(text, opening.end())
        inside = text[opening.end() : closing.start() if closing else opening.end() + MAX_ANSWER_CHARS]
        if not any(mark in inside for mark in marked):
            if not closing:
                yield ""
            elif inside.strip(" \t\r\n."):
                phrases = [_sentence(inside, match.end()) for match in islice(_PHRASE.finditer(inside), MAX_ANSWERS)]
                yield from phrases or [inside]
        opening = _TAG.search(text, closing.end()) if closing else None


def _sentence(text: str, start: int) -> str:
    """What follows the phrase, up to the end of the sentence; or the whole line below, if nothing follows.

    A formula on separate lines is read to its end. If the next line continues with another answer, that is read, too.
    """
    text = text[start : start + MAX_ANSWER_CHARS]
    display = _DISPLAY.match(text)
    break_ = _LINE_END.match(text)
    end = _DISPLAY_END.search(text, display.end()) if display else None
    if display and end:
        line, _, rest = text[end.end() :].partition("\n")
        answer = " ".join(text[display.end() : end.start()].split()) + line
    elif break_:
        answer, _, rest = text[break_.end() :].partition("\n")
    else:
        return _SENTENCE_END.split(text, maxsplit=1)[0]
    return f"{answer} {rest}" if _ALTERNATIVE.match(rest) else answer


def _boxed(text: str) -> Iterator[str]:
    """The text in each box. A box in a box is a part of the outer one; one that never closes is the last."""
    box = _BOX.search(text)
    while box:
        opening = _OPENING.match(text, box.end())
        if opening is None:
            unbraced = _UNBRACED.match(text, box.end(), box.end() + MAX_ANSWER_CHARS)
            yield unbraced[1] if unbraced else ""
            end = unbraced.end() if unbraced else box.end()
        else:
            closing = _closing(text, opening.end())
            yield text[opening.end() : closing] if closing else ""
            if not closing:
                return
            end = closing
        box = _BOX.search(text, end)


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened before ``start``; 0 if it does not, or not soon."""
    depth = 1
    for match in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return 0
