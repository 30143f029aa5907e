"""A task of your own: a subclass of Task, named by its class_path in own_task.yaml.

grpo check --config configs/quickstart_sft.yaml --config examples/own_task.yaml
grpo fit --config configs/quickstart_sft.yaml --config examples/own_task.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Task
from grpo_lightning.tasks.base import Split
from grpo_lightning.types import Prompt

SPLITS: dict[int, Split] = {0: "val", 1: "test"}


class DigitSums(Task):
    """Asks for the sum of the digits of a number. A number is in one split only.

    Args:
        largest: largest number.
        options: options of :class:`Task`.
    """

    def __init__(self, largest: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        if largest < 1:
            raise ConfigError(f"data.task.init_args.largest: must be at least 1, not {largest}")
        self.largest = largest

    def prompts(self, split: Split) -> Sequence[Prompt]:
        numbers = range(self.largest + 1)
        return [self._prompt(str(number)) for number in numbers if SPLITS.get(number % 7, "train") == split]

    def gold_completion(self, prompt: Prompt) -> str:
        assert prompt.solution is not None
        return prompt.solution

    def _prompt(self, digits: str) -> Prompt:
        answer = str(sum(map(int, digits)))
        solution = f"{'+'.join(digits)}={answer}\n#### {answer}"
        return Prompt(self.messages(f"What is the digit sum of {digits}?"), answer, solution=solution)
