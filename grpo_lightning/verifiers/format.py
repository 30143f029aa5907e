"""Judges the form of a completion alone: tags in order, or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Explanation, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.limited import LimitedWorker, OutOf

_MISMATCH = "The completion does not have the format asked for."
# Tried here first, in seconds: an ordinary match takes microseconds, a call of the worker milliseconds. What does not
# end by then is tried again there, so the clock decides where a match is found, and never whether. It is a part of the
# limit, or what ends here in time might not there.
_TRIED_HERE_S = 0.02
_TRIED_HERE_PART = 0.25
_MAX_SHOWN = 300

_WORKER = LimitedWorker(setup=f"{__name__}:_load", call=f"{__name__}:_full_match")


def _load() -> None:
    """Import the engine before the first call, which would count it."""
    _compiled("")


def _full_match(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


class FormatVerifier(Verifier):
    """Correct, and format-valid, if the whole completion has the form asked for. Meant as a part of a sum.

    With ``tags: [think, answer]`` the form is ``<think>...</think> <answer>...</answer>``: each tag once, in this
    order, closed, not nested, with text in it, and only white space around. It is checked in linear time.

    With ``pattern`` the form is a regular expression that must match from the first character to the last; write
    ``(?s)`` where ``.`` should match line ends. A completion that the pattern takes too much CPU time on does not
    match: a text can make a pattern backtrack for ever, and a model finds such texts. How busy the machine is does not
    matter.

    Args:
        tags: names of tags. Give these or a pattern.
        pattern: a regular expression in the syntax of the ``regex`` package, which is that of ``re`` and more, such as
            ``(?>...)`` and ``a++``, which never backtrack.
        text_outside: whether text is allowed before, between and after the tags.
        opened_by_prompt: whether the prompt already ends with the first opening tag, so that it is not repeated.
        min_chars: characters in each tag, without the white space around them.
        timeout_s: CPU time that the pattern may take per completion.
        reward_correct: reward of a completion in this form.
        reward_wrong: reward of any other.
        accept_truncated: whether a completion that was cut off at the token limit can have the form.

    Raises:
        ConfigError: neither tags nor a pattern, or both; a tag that is not a name; a pattern that does not compile.
    """

    def __init__(
        self,
        tags: Sequence[str] | None = None,
        pattern: str | None = None,
        text_outside: bool = False,
        opened_by_prompt: bool = False,
        min_chars: int = 1,
        timeout_s: float = 0.2,
        reward_correct: float = 1.0,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
    ) -> None:
        super().__init__(reward_correct, reward_wrong=reward_wrong, accept_truncated=accept_truncated)
        if bool(tags) == (pattern is not None):
            raise ConfigError("FormatVerifier: give either tags, such as [think, answer], or a pattern")
        if timeout_s <= 0:
            raise ConfigError(f"FormatVerifier.timeout_s: must be above 0, not {timeout_s}")
        self.tags = tuple(tags or ())
        self.pattern = None if pattern is None else _compiled(pattern)
        self.text_outside = text_outside
        self.opened_by_prompt = opened_by_prompt
        self.min_chars = min_chars
        self.timeout_s = timeout_s
        for tag in self.tags:
            if not re.fullmatch(r"\w[\w-]*", tag) or self.tags.count(tag) > 1:
                raise ConfigError(f"FormatVerifier.tags: give each name once and without brackets, not {tag!r}")
        self._any_tag = re.compile(f"</?(?:{'|'.join(self.tags)})>")
        self._all_tags = [text for tag in self.tags for text in (f"<{tag}>", f"</{tag}>")]
        self._form = " ".join(f"<{tag}>...</{tag}>" for tag in self.tags)

    def start(self) -> None:
        if self.pattern is not None:
            _WORKER.start()

    def verify(self, sample: Sample) -> Verdict:
        """Judge the form of a completion.

        Raises:
            RuntimeError: the process that tries a slow pattern cannot start, or hangs.
        """
        text = sample.completion
        if self.pattern is None:
            feedback = self._tags_problem(text)
            reason, expected = feedback, self._form
        else:
            reason, expected = self._pattern_problem(self.pattern, text), self.pattern.pattern
            feedback = _MISMATCH if reason else ""
        shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        explanation = Explanation(shown, expected, reason or "The completion has the form.")
        return Verdict(not feedback, not feedback, feedback, explanation=explanation)

    def _pattern_problem(self, pattern: Any, text: str) -> str:
        """Why a text does not match; empty if it does."""
        here = min(_TRIED_HERE_S, _TRIED_HERE_PART * self.timeout_s)
        try:
            matches = pattern.fullmatch(text, timeout=here) is not None
        except TimeoutError:
            outcome = _WORKER.call([pattern.pattern, text], self.timeout_s)
            if isinstance(outcome, OutOf):
                return f"The pattern ran out of {outcome.value} on the completion, which counts as no match."
            matches = outcome
        return "" if matches else "The pattern does not match the completion."

    def _tags_problem(self, text: str) -> str:
        """What is wrong with the tags of a text; empty if nothing is."""
        if self.opened_by_prompt:
            text = self._all_tags[0] + text
        # One more than there may be is enough to know.
        found = list(islice(self._any_tag.finditer(text), len(self._all_tags) + 1))
        if [match[0] for match in found] != self._all_tags:
            return f"Use each tag exactly once, in this order: {self._form}."
        edges = [0, *(edge for match in found for edge in match.span()), len(text)]
        texts = [text[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True)]
        outside, inside = texts[::2], texts[1::2]
        if any(outside) and not self.text_outside:
            return f"Write nothing outside of the tags: {self._form}."
        if any(len(part) < self.min_chars for part in inside):
            return f"Write something in each of the tags: {self._form}."
        return ""


def _compiled(pattern: str) -> Any:
    # The standard library's engine has no time limit. This one takes long to import, for those who use tags.
    import regex  # type: ignore[import-untyped]

    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(f"FormatVerifier.pattern: {pattern!r} is not a regular expression: {error}") from error
