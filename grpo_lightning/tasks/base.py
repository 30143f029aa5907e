"""The contract of every task: data set rows become prompts with gold answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.wrong_answers import wrong_completions
from grpo_lightning.types import Prompt

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class MissingSplit(ConfigError):
    """The data has no such split."""


class Task(ABC):
    """Yields prompts with gold answers.

    Args:
        system_prompt: put before every prompt as the system message; ``None`` for none.
        chat_template: a Jinja chat template in place of the tokenizer's own; ``None`` keeps the tokenizer's.
    """

    solution_mend: ClassVar[str] = "give every prompt a solution"
    """What to do about rows without a worked solution, for the error that says so."""

    def __init__(self, system_prompt: str | None = None, chat_template: str | None = None) -> None:
        self.system_prompt = system_prompt
        self.chat_template = chat_template

    @abstractmethod
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """All prompts of a split, in a fixed order.

        Raises:
            MissingSplit: there is no such split.
            ConfigError: the data is missing, empty, or lacks a column; the message names which and the mend.
        """

    @abstractmethod
    def gold_completion(self, prompt: Prompt) -> str:
        """The prompt's gold answer as a perfect completion: the task's verifier must find it correct."""

    def wrong_completions(self, prompt: Prompt) -> Sequence[str]:
        """Completions in the same format that are certainly wrong: the verifier must not find all of them correct.

        By default the gold completion with another answer, as :func:`wrong_completions` makes it. Empty for a row
        without any answer that could be wrong.
        """
        try:
            gold = self.gold_completion(prompt)
        except ConfigError:
            gold = None
        return wrong_completions(prompt, gold)

    def messages(self, user: str) -> list[dict[str, str]]:
        """A chat of the system prompt, if any, and one user turn."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": user}]
