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
_NUMBER = re.compile(r"[\s$(]*[-\u2212]?[0-9][0-9.,/]*[\s$).,;]*")
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?<![^\W_])ans(?:wer)?[*_`]*(?:\s+to\s+(?:the|this)\s+(?:problem|question|exercise))?"
    r"(?:\s+(?:is|equals|(?:would|should|must|will)\s+be)\b(?:\s+(?:therefore|thus|hence|then|simply|just|clearly)\b,?)?"
    r"[*_`]*[ \t]*:?|\s*[:=\uff1a])"
    # A heading on a separate line, in whatever emphasis.
    r"|^[ \t]*(?:#{1,3}|#{5,6}|[*_]+)[ \t]*(?:\*\*|__)?(?:the\s+)?(?:final\s+)?answer[ \t*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_WRONG = ("wrong", "incorrect", "false", "mistaken", "naive", "tempting")
# What may end the line of the phrase, so that the answer is the next line.
_LINE_END = re.compile(r"[*_`]*[ \t\r]*\n\s*(?:```[a-z]*[ \t\r]*\n\s*)?")
_BULLET = re.compile(r"[-*\u2022][ \t]+")
_SENTENCE_END = re.compile(r"\.\s|\n")
# Mathematics set on separate lines.
_DISPLAY = re.compile(r"[*_`\s]*(?:\\\[|\$\$)")
_DISPLAY_END = re.compile(r"\\\]|\$\$")
_ALTERNATIVE = re.compile(r"[\s,;.*_`]*(?:or|and|alternatively|maybe|perhaps|possibly)\b", re.IGNORECASE)
# After the line of an answer, a line with another value alone takes it back.
_OR_VALUE = re.compile(
    r"\s*(?:or|maybe|perhaps|possibly|alternatively)\s+(?:maybe\s+)?[$\\(]*-?[0-9][0-9.,/]*[$\\)]*[ \t.?!]*(?:\n|\Z)",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_OPENING = re.compile(r"\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*)?\{")
_TEXT_LABEL = re.compile(r"\\text(?:bf|rm)?\{\s*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s*\}", re.IGNORECASE)
# A box that is a part of a formula is not the answer: 7\boxed{8}, -\boxed{8}, \frac{1}{\boxed{8}}, \boxed{8}^2.
_PART_BEFORE = re.compile(
    r"(?:[0-9]|[-\u2212+/]|[$(=\[]\s*[-\u2212]\s*|[\^_]\{?"
    r"|\\(?:[dtc]?frac|sqrt|binom)\s*(?:\{[^{}]*\}|\[[^\[\]]*\])?\s*\{)\Z"
)
_ENDS = frozenset(("", "$", ".", "\n"))
_GLUE = frozenset("0123456789-\u2212+/^_{")
_PART_AFTER = re.compile(
    r"[0-9]|\{\s*-?[0-9]|/[0-9]|\^(?!\{?\s*(?:\\circ|(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)\b))|\s*\\(?:pi|sqrt|[dtc]?frac|cdot|times)(?![A-Za-z])"
)
_OR_NUMBER = re.compile(
    r"[\s$,*]*(?:\\text\s*\{\s*or\s*\}|\bor\b)\s*[$(]?(?:[A-Za-z]\s*=\s*)?"
    r"(-?[0-9](?:[0-9.,/]*[0-9])?\\?%?)(?![\w^+*\\{-])",
    re.IGNORECASE,
)
# How far a formula is looked at on either side of a box.
_NEAR = 80
_END_TOKEN = re.compile(r"(?:</s>|<eos>|<end_of_turn>|<\|[a-z_]{2,20}\|>)$", re.IGNORECASE)
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
    if text.rstrip().endswith(">"):
        text = _without_end_tokens(text)
    found: list[Answers] = []
    if "hash" in formats and "####" in text:
        found.append(_first("hash", (_unlabelled(match[1]) for match in _HASH.finditer(text))))
    if "boxed" in formats and "\\" in text:
        found.append(_first("boxed", _boxed(text)))
    if "tag" in formats and "<" in text:
        found.append(_first("tag", _tagged(text, formats)))
    if "phrase" in formats and not any(answers.texts for answers in found):
        found.append(_first("phrase", _phrases(text)))
    if "bare" in formats and text.strip() and not any(answers.texts for answers in found):
        found.append(Answers("bare", [text]))
    return [answers for answers in found if answers.texts]


def _first(form: Format, texts: Iterator[str]) -> Answers:
    return Answers(form, list(islice(texts, MAX_ANSWERS + 1)))


def _without_end_tokens(text: str) -> str:
    """The text without the special tokens that end a turn."""
    for _ in range(4):
        tail = text[-40:].rstrip()
        end = _END_TOKEN.search(tail) if tail.endswith(">") else None
        if end is None:
            break
        text = text.rstrip()[: -len(end[0])]
    return text


def _phrases(text: str) -> Iterator[str]:
    for match in _PHRASE.finditer(text):
        if not text[max(0, match.start() - 12) : match.start()].rstrip(" \t").lower().endswith(_WRONG):
            yield _sentence(text, match.end())


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
        marks = [start for mark in marked if (start := inside.find(mark)) >= 0]
        if marks:
            # 7 \boxed{8} is two answers; a line of work before the box is none.
            if _NUMBER.fullmatch(inside[: min(marks)]):
                yield ""
        elif not closing:
            yield ""
        elif inside.strip(" \t\r\n."):
            yield from list(islice(_phrases(inside), MAX_ANSWERS)) or [inside]
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
        bullet = _BULLET.match(answer)
        if bullet:
            answer = answer[bullet.end() :] + (f", {rest}" if _BULLET.match(rest.lstrip()) else "")
    else:
        line, _, rest = text.partition("\n")
        answer = _SENTENCE_END.split(line, maxsplit=1)[0]
        return f"{answer} {rest}" if answer == line and _OR_VALUE.match(rest) else answer
    return f"{answer} {rest}" if _ALTERNATIVE.match(rest) else answer


def _boxed(text: str) -> Iterator[str]:
    """The text in each box, and a number that follows after "or".

    A box in a box is a part of the outer one; one that never closes is the last. A box in a formula is an empty text.
    """
    box = _BOX.search(text)
    while box:
        opening = _OPENING.match(text, box.end())
        if opening is None:
            unbraced = _UNBRACED.match(text, box.end(), box.end() + MAX_ANSWER_CHARS)
            yield unbraced[1] if unbraced else ""
            end = unbraced.end() if unbraced else box.end()
        else:
            closing = _closing(text, opening.end())
            if not closing:
                yield ""
                return
            end = closing + 1
            is_part = _is_part(text, box.start(), end)
            inside = text[opening.end() : closing]
            yield "" if is_part else _TEXT_LABEL.sub("", inside, count=1) if "\\text" in inside else inside
            alternative = _OR_NUMBER.match(text, end, end + _NEAR) if text[end : end + 1] else None
            if alternative:
                yield alternative[1]
        box = _BOX.search(text, end)


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether the box from ``start`` to ``end`` is a part of a formula. Most boxes are not, and cost a glance."""
    if text[end : end + 1] not in _ENDS and _PART_AFTER.match(text, end):
        return True
    before = text[max(0, start - _NEAR) : start]
    return before.rstrip()[-1:] in _GLUE and bool(_PART_BEFORE.search(before))


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
