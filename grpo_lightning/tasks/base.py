"""The contract of every task: data set rows become prompts, and the gold answers check the verifier."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge

log = logging.getLogger(__name__)

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

    def messages(self, user: str) -> list[dict[str, str]]:
        """A chat of the system prompt, if any, and one user turn."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": user}]


@dataclass(frozen=True)
class GoldFailure:
    """A row whose own gold answer the verifier does not find correct."""

    split: Split
    row: int
    verifier: str
    completion: str
    verdict: Verdict


def check_gold(task: Task, verifiers: Sequence[Verifier], splits: Sequence[Split] = SPLITS) -> Iterator[GoldFailure]:
    """Yield every row whose gold completion one of the verifiers does not find correct.

    Broken rows are found here, before training, instead of as rewards that can never be had. A split that the data does
    not have is left out, and named in the log.

    Raises:
        ConfigError: a split is empty, or there is none, so there is nothing to check.
    """
    missing = []
    for split in splits:
        try:
            prompts = task.prompts(split)
        except MissingSplit:
            missing.append(split)
            if len(missing) == len(splits):
                raise
            log.warning("data.task: no %s split: not checked", split)
            continue
        if not prompts:
            raise ConfigError(f"data.task: the {split} split has no rows")
        completions = [task.gold_completion(prompt) for prompt in prompts]
        samples = [
            Sample(prompt.messages, completion, prompt.answer, prompt.metadata)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        for verifier in verifiers:
            for row, verdict in enumerate(judge(verifier, samples)):
                if not verdict.correct and not verdict.abstained:
                    yield GoldFailure(split, row, type(verifier).__name__, completions[row], verdict)
