"""Numbers to guess, for the game of :class:`grpo_lightning.environments.GuessNumber` and a tiny model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from grpo_lightning.tasks._generate import require
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.types import Prompt


class Numbers(Task):
    """One row for each number, all with the same prompt: only what the environment says tells them apart.

    With ``demonstrations``, rows are turns to imitate before reinforcement learning: guesses that are drawn at random,
    after others and what was said of them. They show the form, and nothing of how to play.

    Args:
        lowest: smallest number.
        highest: largest number.
        demonstrations: number of turns to imitate in the train split; 0 for the game itself.
        longest: most guesses before the one to imitate.
        options: options of :class:`Task`.
    """

    default_template = "Guess a number. {prompt}"

    def __init__(
        self, lowest: int = 10, highest: int = 25, demonstrations: int = 0, longest: int = 3, **options: Any
    ) -> None:
        super().__init__(**options)
        require(highest > lowest, "highest", highest, f"must be above lowest, {lowest}")
        require(demonstrations >= 0, "demonstrations", demonstrations, "must be at least 0")
        require(longest >= 0, "longest", longest, "must be at least 0")
        self.range = range(lowest, highest + 1)
        self.demonstrations = demonstrations
        self.longest = longest

    def prompts(self, split: Split) -> Sequence[Prompt]:
        if split == "train" and self.demonstrations:
            generator = random.Random("numbers")
            return [self._demonstration(generator) for _ in range(self.demonstrations)]
        return [Prompt(self._start(), str(secret), solution=str(secret)) for secret in self.range]

    def gold_completion(self, prompt: Prompt) -> str:
        return str(prompt.answer)

    def _start(self) -> list[dict[str, str]]:
        return self.messages(f"{self.range[0]} to {self.range[-1]}.")

    def _demonstration(self, generator: random.Random) -> Prompt:
        messages, secret = self._start(), generator.choice(self.range)
        for _ in range(generator.randint(0, self.longest)):
            guess = generator.choice([number for number in self.range if number != secret])
            hint = "higher" if guess < secret else "lower"
            messages += [{"role": "assistant", "content": str(guess)}, {"role": "user", "content": hint}]
        return Prompt(messages, str(secret), solution=str(generator.choice(self.range)))
