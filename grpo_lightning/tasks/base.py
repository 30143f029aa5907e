"""The base class of tasks, which turn data set rows into prompts with gold answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.template import checked_fields, fill
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
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models;
            ``None`` keeps the tokenizer's.
        prompt_template: the text of the user turn, in which ``{prompt}`` is the row's text. ``{{`` and ``}}``
            are literal braces. Default: the task's own, which says what to do and in which format to answer.

    Raises:
        ConfigError: the template lacks ``{prompt}``, or has a name that the task does not know.
    """

    default_template: ClassVar[str] = "{prompt}"
    """The prompt template unless the user gives one."""

    placeholders: ClassVar[tuple[str, ...]] = ("prompt",)
    """The names that a prompt template may contain. :meth:`messages` gets the value of each."""

    shares: Mapping[str, float] = MappingProxyType({})
    """The weights of the tasks of a mixture, by ``Prompt.task``; empty for a task that is none."""

    solution_fix: ClassVar[str] = "give every prompt a solution"
    """How to fix rows without a worked solution, for the error message about them."""

    def __init__(
        self,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        prompt_template: str | None = None,
    ) -> None:
        self.system_prompt = system_prompt
        self.chat_template = chat_template
        self.set_template(prompt_template)

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

    def messages(self, prompt: str, **values: str) -> list[dict[str, Any]]:
        """Build a chat from the system prompt, if any, and one user turn: the prompt template with a row's values.

        Args:
            prompt: the row's text.
            values: the other placeholders' values.
        """
        return self.chat(fill(self.prompt_template, {"prompt": prompt, **values}))

    def chat(self, user: str) -> list[dict[str, Any]]:
        """Build a chat from the system prompt, if any, and one user turn."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": user}]

    def set_template(self, prompt_template: str | None) -> None:
        """Use a prompt template, after a check; ``None`` for the task's own."""
        self.prompt_template = template = self.default_template if prompt_template is None else prompt_template
        key = "data.task.init_args.prompt_template"
        names = checked_fields(template, key)
        unknown = sorted(names - set(self.placeholders))
        known = " or ".join(f"{{{name}}}" for name in self.placeholders)
        if unknown:
            raise ConfigError(
                f"{key}: {{{unknown[0]}}} is not a placeholder of {type(self).__name__}; use {known}, or write "
                f"{{{{{unknown[0]}}}}} for literal braces"
            )
        if "prompt" not in names:
            raise ConfigError(
                f"{key}: {template!r} does not contain {{prompt}}, so all prompts would be the same; put it where the "
                "row's text belongs"
            )


def gold_completion(task: Task, prompt: Prompt) -> str | None:
    """The gold completion of a prompt, or ``None`` if the task has none."""
    try:
        return task.gold_completion(prompt)
    except ConfigError:
        return None


def with_examples(prompts: Sequence[Prompt], examples: Sequence[Prompt]) -> list[Prompt]:
    """Put worked examples before the rows' own turns, each as a user turn and its solution as the assistant's answer.

    Args:
        prompts: the rows.
        examples: other rows, of the same task, that have solutions.
    """
    turns = [turn for example in examples for turn in _worked(example)]
    return [_after(turns, prompt, len(examples)) for prompt in prompts] if turns else list(prompts)


def _after(turns: list[dict[str, Any]], prompt: Prompt, shots: int) -> Prompt:
    start = 1 if prompt.messages[0]["role"] == "system" else 0
    return replace(prompt, messages=[*prompt.messages[:start], *turns, *prompt.messages[start:]], shots=shots)


def _worked(example: Prompt) -> list[dict[str, Any]]:
    assert example.solution is not None
    own = [message for message in example.messages if message["role"] != "system"]
    return [*own, {"role": "assistant", "content": example.solution}]
