"""Several tasks in one run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import MissingSplit, Split, Task
from grpo_lightning.types import Prompt

log = logging.getLogger(__name__)

_ARGS = "data.task.init_args"
COLUMN = "task"
"""The metadata column with the name of a row's task."""


@dataclass(frozen=True)
class TaskShare:
    """One task of a mixture.

    Args:
        task: the task, with its own prompts, system prompt and templates.
        name: names its curve ``val/<name>/accuracy``, and what verifiers go by. Default: the name of its class.
        weight: its share of the training prompts, relative to the other weights, however many rows it has.
    """

    task: Task
    name: str | None = None
    weight: float = 1.0


class Mixture(Task):
    """Several tasks in one run, each with its own rows, system prompt, verifiers and validation curve.

    In YAML::

        model:
          init_args:
            verifiers:
              class_path: ByColumn
              init_args:
                column: task
                verifiers: {math: {class_path: MathVerifier}, json: {class_path: JSONSchemaVerifier}}
        data:
          task:
            class_path: Mixture
            init_args:
              tasks:
                - {name: math, weight: 2, task: {class_path: Arithmetic}}
                - {name: json, task: {class_path: Extraction, init_args: {system_prompt: Answer in JSON.}}}

    The name of a row's task is in its metadata, as ``task``. A pass over the train split has as many places as there
    are rows; the tasks share them by weight, and each has its own passes over its own rows. Validation and test have
    all rows of all tasks once.

    Args:
        tasks: the tasks, with names and weights.
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models.
            One policy reads all tasks, so theirs must be the same.

    Raises:
        ConfigError: names repeat or cannot be names of curves, a weight is not above 0, or chat templates differ.
    """

    def __init__(self, tasks: Sequence[TaskShare], chat_template: str | None = None) -> None:
        own = {share.task.chat_template for share in tasks} - {None}
        chosen = {chat_template, *own} - {None}
        if len(chosen) > 1:
            raise ConfigError(f"{_ARGS}.chat_template: the tasks have different ones: give all of them the same")
        super().__init__(chat_template=next(iter(chosen), None))
        if not tasks:
            raise ConfigError(f"{_ARGS}.tasks: give at least one task")
        self.tasks: dict[str, Task] = {}
        self.shares: dict[str, float] = {}
        for share in tasks:
            name = type(share.task).__name__ if share.name is None else share.name
            if name in self.tasks:
                raise ConfigError(f"{_ARGS}.tasks: two tasks are called {name!r}: give each a different name")
            if not name or "/" in name or name == "reward":
                raise ConfigError(f"{_ARGS}.tasks: {name!r} cannot be a name, for curves are called by it: rename it")
            if not 0 < share.weight < math.inf:
                raise ConfigError(f"{_ARGS}.tasks: the weight of {name} must be above 0, not {share.weight}")
            if isinstance(share.task, Mixture):
                raise ConfigError(f"{_ARGS}.tasks: {name} is a Mixture itself: list its tasks in this one")
            self.tasks[name], self.shares[name] = share.task, share.weight

    def prompts(self, split: Split) -> Sequence[Prompt]:
        prompts: list[Prompt] = []
        for name, task in self.tasks.items():
            try:
                rows = task.prompts(split)
            except MissingSplit:
                if split == "train":
                    raise
                log.warning("data.task: %s has no %s split, so it has no part in it", name, split)
                continue
            if any(COLUMN in row.metadata for row in rows):
                raise ConfigError(
                    f"{_ARGS}.tasks: the rows of {name} have metadata called {COLUMN!r}, where a mixture puts the name "
                    "of a row's task: rename theirs (in Tabular: metadata_columns: {kind: task})"
                )
            prompts += [replace(row, task=name, metadata={**row.metadata, COLUMN: name}) for row in rows]
        if not prompts:
            raise MissingSplit(f"data.task: none of {', '.join(self.tasks)} has a {split} split")
        return prompts

    def gold_completion(self, prompt: Prompt) -> str:
        return self.tasks[prompt.task].gold_completion(prompt)

    def wrong_completions(self, prompt: Prompt) -> Sequence[str]:
        return self.tasks[prompt.task].wrong_completions(prompt)
