"""The base class of tasks, which turn data set rows into prompts with gold answers."""

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
    """The data does not have the requested split."""


class Task(ABC):
    """A source of prompts with gold answers.

    Args:
        system_prompt: the system message put before every prompt; ``None`` for none.
        chat_template: a Jinja chat template to use instead of the tokenizer's; ``None`` keeps the tokenizer's.
    """

    solution_fix: ClassVar[str] = "give every prompt a solution"
    """How to fix rows without a worked solution, for the error message about them."""

    def __init__(self, system_prompt: str | None = None, chat_template: str | None = None) -> None:
        self.system_prompt = system_prompt
        self.chat_template = chat_template

    @abstractmethod
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return all prompts of a split, in a fixed order.

        Raises:
            MissingSplit: the data does not have the split.
            ConfigError: the data is missing, empty, or lacks a column; the message names the problem and the fix.
        """

    @abstractmethod
    def gold_completion(self, prompt: Prompt) -> str:
        """Return the prompt's gold answer as a perfect completion, which the task's verifier must find correct."""

    def wrong_completions(self, prompt: Prompt) -> Sequence[str]:
        """Return completions that are certainly wrong; the verifier must not find all of them correct.

        By default they are the gold completion with a different answer, as :func:`wrong_completions` builds it. Empty
        for a row without an answer that could be wrong.
        """
        return wrong_completions(prompt, gold_completion(self, prompt))

    def messages(self, user: str) -> list[dict[str, str]]:
        """Build a chat from the system prompt, if any, and one user turn."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": user}]


def gold_completion(task: Task, prompt: Prompt) -> str | None:
    """The gold completion of a prompt, or ``None`` if the task has none."""
    try:
        return task.gold_completion(prompt)
    except ConfigError:
        return None
