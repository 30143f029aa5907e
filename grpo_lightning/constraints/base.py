"""The contract of constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod

from grpo_lightning.types import Prompt


class Constraint(ABC):
    """Which texts a completion may be: only tokens that can still lead to one of them are sampled.

    A completion can end only where its text is complete; one that is cut off at ``max_new_tokens`` is the beginning of
    such a text. What comes before the completion, the prompt and earlier attempts, does not matter.
    """

    @abstractmethod
    def grammar(self, prompt: Prompt) -> str:
        """The grammar of the completions of a row.

        Args:
            prompt: the row; the gold answer must not decide what is allowed.

        Returns:
            Text that llguidance reads: Lark, or what ``llguidance.LLMatcher.grammar_from_...`` returns.

        Raises:
            ValueError: the row has none; the message is one clause.
        """

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"
