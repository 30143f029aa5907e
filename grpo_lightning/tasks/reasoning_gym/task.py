"""Rows of reasoning-gym's procedural data sets, one of them or a mixture."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._generate import require
from grpo_lightning.tasks.base import Split, Task, with_examples
from grpo_lightning.tasks.shares import apportion
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.limited import process_environment
from grpo_lightning.verifiers.reasoning_gym.datasets import INSTALL, source_of
from grpo_lightning.verifiers.reasoning_gym.verifier import COLUMN

_ARGS = "data.task.init_args"
_MAX_SEED = 1000
_SHOTS = "shots"


@dataclass(frozen=True)
class GymDataset:
    """One data set of a mixture.

    Args:
        name: its name in reasoning-gym, such as ``countdown``.
        weight: its share of the rows, relative to the other weights.
        difficulty: the level of reasoning-gym's curriculum, from 0; ``None`` for the data set's defaults.
        options: options of the data set; they override those of the difficulty.
    """

    name: str
    weight: float = 1.0
    difficulty: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The text that identifies the data set."""
        return source_of(self.name, self.difficulty, dict(self.options))


class ReasoningGym(Task):
    """Generated rows of reasoning-gym, which has about a hundred procedural data sets with a scorer each.

    In YAML, one data set, or a mixture::

        task:
          class_path: ReasoningGym
          init_args: {name: countdown, difficulty: 0, options: {max_numbers: 4}}

        task:
          class_path: ReasoningGym
          init_args:
            mixture:
              - {name: countdown, weight: 2}
              - {name: chain_sum, difficulty: 1}

    ``ReasoningGymVerifier`` judges the answers. Rows are the same in every run of one version of reasoning-gym; no
    question is in two splits. They are generated at the start, in a separate process: most data sets take about a
    millisecond per row, a few (``knight_swap``, ``futoshiki``, ``puzzle24``) a tenth of a second or more.

    Args:
        name: the data set. Give this or a mixture.
        difficulty: the level of reasoning-gym's curriculum, from 0; ``None`` for the data set's defaults.
        options: options of the data set.
        mixture: several data sets, with weights.
        seed: the random seed, from 0 to 1000. Splits have seeds of their own.
        train_size: number of rows in the train split.
        val_size: number of rows in the validation split.
        test_size: number of rows in the test split.
        system_prompt: the system message put before every prompt.
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models.
        prompt_template: the text of the user turn, in which ``{prompt}`` is the question. Default: the
            question, and that the answer belongs into the tag that the verifier reads.
        shots: number of worked examples before every prompt, as turns of the chat: of the row's own data set, the same
            for all of its rows, and in no split. There are none for a data set without gold answers.

    Raises:
        ConfigError: an option is out of range, or reasoning-gym is not installed.
    """

    default_template: ClassVar[str] = (
        "{prompt}\n\nGive the final answer between <answer> and </answer>, and nothing else inside of these tags."
    )
    solution_fix: ClassVar[str] = "choose data sets with gold answers"

    def __init__(
        self,
        name: str | None = None,
        difficulty: int | None = None,
        options: Mapping[str, Any] | None = None,
        mixture: Sequence[GymDataset] | None = None,
        seed: int = 0,
        train_size: int = 2000,
        val_size: int = 200,
        test_size: int = 500,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        prompt_template: str | None = None,
        shots: int = 0,
    ) -> None:
        super().__init__(system_prompt, chat_template, prompt_template)
        if find_spec("reasoning_gym") is None:
            raise ConfigError(f"data.task: {INSTALL}")
        if (name is None) == (mixture is None):
            raise ConfigError(f"{_ARGS}: give either name, such as countdown, or a mixture")
        if mixture is not None and (difficulty is not None or options):
            raise ConfigError(f"{_ARGS}: give difficulty and options for each data set of the mixture")
        if name is not None:
            mixture = [GymDataset(name, difficulty=difficulty, options=options or {})]
        assert mixture is not None
        self.mixture = list(mixture)
        if not self.mixture:
            raise ConfigError(f"{_ARGS}.mixture: give at least one data set")
        for part in self.mixture:
            if not 0 < part.weight < math.inf:
                raise ConfigError(f"{_ARGS}.mixture: the weight of {part.name} must be above 0, not {part.weight}")
        require(0 <= seed <= _MAX_SEED, "seed", seed, f"must be from 0 to {_MAX_SEED}")
        self.seed = seed
        # Train comes last, so that the other splits do not depend on its size.
        self.sizes: dict[Split, int] = {"test": test_size, "val": val_size, "train": train_size}
        for split, size in self.sizes.items():
            rule = f"is below {len(self.mixture)}, one row per data set"
            require(size >= len(self.mixture), f"{split}_size", size, rule)
        require(shots >= 0, "shots", shots, "must be at least 0")
        self.shots = shots

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._prompts[split]

    def gold_completion(self, prompt: Prompt) -> str:
        if prompt.solution is None:
            raise ConfigError(f"data.task: {prompt.metadata[COLUMN]['name']} has no gold answers")
        return prompt.solution

    def wrong_completions(self, prompt: Prompt) -> Sequence[str]:
        return ["<answer>certainly wrong</answer>", "<answer></answer>"]

    @cached_property
    def _prompts(self) -> dict[Split, list[Prompt]]:
        weights = [part.weight for part in self.mixture]
        counts = {split: apportion(size, weights) for split, size in self.sizes.items()}
        parts = [
            # Examples come first: they depend on nothing else, and no row of a split repeats them.
            {"source": part.source, "sizes": {_SHOTS: self.shots, **{split: counts[split][n] for split in self.sizes}}}
            for n, part in enumerate(self.mixture)
        ]
        rows = [
            {split: [self._prompt(part, row) for row in of_split] for split, of_split in generated.items()}
            for part, generated in zip(self.mixture, _generated({"seed": self.seed, "parts": parts}), strict=True)
        ]
        prompts: dict[Split, list[Prompt]] = {}
        for split in self.sizes:
            prompts[split] = []
            for of_part in rows:
                examples = [example for example in of_part[_SHOTS] if example.solution is not None]
                prompts[split] += with_examples(of_part[split], examples)
            random.Random(f"{self.seed}/{split}").shuffle(prompts[split])
        return prompts

    def _prompt(self, part: GymDataset, row: Mapping[str, Any]) -> Prompt:
        answer = row["answer"]
        return Prompt(
            messages=self.messages(row["question"].strip()),
            answer=answer,
            metadata={COLUMN: {"name": part.name, "source": part.source, "entry": row["entry"]}},
            solution=None if answer is None else f"<answer>{answer}</answer>",
        )


def _generated(request: dict[str, Any]) -> list[dict[str, list[dict[str, Any]]]]:
    done = subprocess.run(
        [sys.executable, "-m", "grpo_lightning.tasks.reasoning_gym.rows"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=process_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"data.task: generating the rows of reasoning-gym failed: {done.stderr.strip()[-2000:]}")
    reply = json.loads(done.stdout)
    if "refused" in reply:
        raise ConfigError(f"{_ARGS}.{reply['refused']}")
    rows: list[dict[str, list[dict[str, Any]]]] = reply["rows"]
    return rows
