"""A game of several turns: guess a number by hints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grpo_lightning.environments.base import Environment, Message, Reply, Step
from grpo_lightning.types import Prompt


class GuessNumber(Environment):
    """Answers guesses with "higher" or "lower". The row's gold answer is the number; ``Numbers`` is a task for it.

    The episode is over when the number is guessed, with the reward 1, or after ``max_turns`` guesses, with the reward
    0. A reply without a number is a lost guess.

    Args:
        options: options of :class:`Environment`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def reset(self, row: Prompt) -> Sequence[Message]:
        self.secret = int(row.answer)
        self.guesses = 0
        return row.messages

    def step(self, reply: Reply) -> Step:
        self.guesses += 1
        found = re.search(r"\d+", reply.text)
        guess = int(found[0]) if found else None
        if guess == self.secret:
            return Step(done=True, reward=1.0, info={"guess": guess})
        if self.guesses == self.max_turns:
            return Step(done=True, reward=0.0, info={"guess": guess})
        hint = "no number" if guess is None else "higher" if guess < self.secret else "lower"
        return Step([{"role": "user", "content": hint}], info={"guess": guess})
