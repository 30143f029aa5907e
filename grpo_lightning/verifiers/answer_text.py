"""Separates the answer of a completion from its thoughts: the one place where a verifier learns what to read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample

_NAME = re.compile(r"\w[\w-]*")
_BRACKETED = re.compile(r"([<\[{(|]+)([^/\s<>\[\]{}()|][^\s<>\[\]{}()|]*)([>\]})|]+)")

_ENDLESS_THOUGHT = "The thought never ends. End it with {close}, then give the answer."
_NO_ANSWER_TAG = "There is no {open}...{close}. Put the answer into one."
_OPEN_ANSWER_TAG = "{open} is never closed. End the answer with {close}."
_SEVERAL_ANSWER_TAGS = "There are several different answers in {open}...{close}. Give exactly one."


class Tag(NamedTuple):
    """An opening and a closing tag, such as ``<think>`` and ``</think>``."""

    open: str
    close: str


class AnswerText(NamedTuple):
    """What a verifier has to read.

    Args:
        text: the answer; empty if there is a problem.
        problem: feedback for the policy if the answer cannot be located, else empty.
    """

    text: str
    problem: str = ""


class AnswerReader:
    """Finds the part of a completion that answers: what is outside of its thoughts, or inside of an answer tag.

    A thought that never ends leaves no answer. The thought may have been opened by the prompt: by a chat template that
    ends in ``<think>``, or by a prefilled assistant turn. A closing tag without an opening one ends such a thought.

    Args:
        thought_tags: names (``think`` for ``<think>...</think>``) or opening tags as they are written (``[THINK]`` for
            ``[THINK]...[/THINK]``).
        answer_tag: a name or an opening tag. If given, the answer is what stands inside of it, once, and nothing else
            is read.

    Raises:
        ConfigError: a tag is neither a name nor a name in brackets, or occurs twice.
    """

    def __init__(self, thought_tags: Sequence[str] = ("think",), answer_tag: str | None = None) -> None:
        if isinstance(thought_tags, str):
            raise ConfigError(f"thought_tags: give a list, such as [{thought_tags}]")
        self._thoughts = [_tag("thought_tags", text) for text in thought_tags]
        self._answer = None if answer_tag is None else _tag("answer_tag", answer_tag)
        tags = [*self._thoughts, *([self._answer] if self._answer else [])]
        if len({tag.open for tag in tags}) < len(tags):
            raise ConfigError("thought_tags, answer_tag: each tag must be another one")
        self._tag_of = {text: tag for tag in self._thoughts for text in tag}
        self._any_thought = re.compile(f"({'|'.join(map(re.escape, self._tag_of)) or '(?!)'})")

    def read(self, sample: Sample) -> AnswerText:
        """The answer of a sample. Takes time linear in the completion."""
        visible, unended = self._without_thoughts(sample.completion, self._opened_by(sample))
        if unended is not None:
            return AnswerText("", _ENDLESS_THOUGHT.format(close=unended.close))
        return AnswerText(visible) if self._answer is None else _inside(visible, self._answer)

    def _opened_by(self, sample: Sample) -> Tag | None:
        """The thought that is open where the completion begins."""
        end = sample.prompt_end.rstrip()
        for tag in self._thoughts:
            if end.endswith(tag.open):
                return tag
        prompt = sample.prompt
        if isinstance(prompt, str):
            return self._begun_by(prompt)
        if prompt and prompt[-1].get("role") == "assistant":
            return self._without_thoughts(str(prompt[-1].get("content") or ""), None)[1]
        return None

    def _begun_by(self, prompt: str) -> Tag | None:
        """The last thought that a plain prompt begins and does not end.

        It opens a line, follows a special token or ends the prompt. Elsewhere a prompt only names the tags.
        """
        begun = -1
        for tag in self._thoughts:
            begun = max(begun, prompt.rfind(tag.open))
        if begun < 0:
            return None
        thought = prompt[begun:].rstrip()
        opens_line = prompt[:begun].rstrip(" \t")[-1:] in ("", "\n", ">")
        return self._without_thoughts(thought, None)[1] if opens_line or thought in self._tag_of else None

    def _without_thoughts(self, text: str, opened: Tag | None) -> tuple[str, Tag | None]:
        """The text outside of thoughts, and the tag of a thought that never ends."""
        kept: list[str] = []
        for piece in self._any_thought.split(text):
            tag = self._tag_of.get(piece)
            if tag is None:
                if opened is None:
                    kept.append(piece)
            elif piece == tag.open:
                opened = opened or tag
            elif opened is None:
                # Opened by the prompt, which is not always known.
                kept.clear()
            elif opened == tag:
                opened = None
        # Joined by a line break, so that a thought cannot glue two halves of a number together.
        return "\n".join(kept), opened


def _inside(text: str, tag: Tag) -> AnswerText:
    blocks = list(_blocks(text, tag))
    if not blocks:
        return AnswerText("", _NO_ANSWER_TAG.format(**tag._asdict()))
    if blocks[-1] is None:
        return AnswerText("", _OPEN_ANSWER_TAG.format(**tag._asdict()))
    if len({block.strip() for block in blocks if block is not None}) > 1:
        return AnswerText("", _SEVERAL_ANSWER_TAGS.format(**tag._asdict()))
    return AnswerText(blocks[-1])


def _blocks(text: str, tag: Tag) -> Iterator[str | None]:
    """The text in each pair of tags; ``None`` for one that is never closed."""
    start = text.find(tag.open)
    while start >= 0:
        start += len(tag.open)
        end = text.find(tag.close, start)
        yield text[start:end] if end >= 0 else None
        start = text.find(tag.open, end) if end >= 0 else -1


def _tag(key: str, text: str) -> Tag:
    if _NAME.fullmatch(text):
        return Tag(f"<{text}>", f"</{text}>")
    match = _BRACKETED.fullmatch(text)
    if match is None:
        raise ConfigError(f"{key}: {text!r} is not a tag: write a name, such as think, or its opening tag, <think>")
    return Tag(text, f"{match[1]}/{match[2]}{match[3]}")
