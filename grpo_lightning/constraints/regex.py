"""Completions that match a regular expression."""

from __future__ import annotations

from grpo_lightning.constraints.base import Constraint
from grpo_lightning.constraints.grammar import library
from grpo_lightning.types import Prompt


class Regex(Constraint):
    """The whole completion matches a regular expression, such as ``[0-9]+`` or ``yes|no``.

    The syntax is that of Rust's ``regex``: no look-around and no references to groups. A dot is any character but a
    line break.

    Args:
        pattern: the regular expression.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def grammar(self, prompt: Prompt) -> str:
        return str(library().LLMatcher.grammar_from_regex(self.pattern))
