"""A game of several turns: guess a number by hints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grpo_lightning.environments.base import Environment, Message, Reply, Step
from grpo_lightning.types import Prompt, Sample
from grpo_lightning.verifiers.answer_text import AnswerReader

_MAX_DIGITS = 100
"""A longer number is not a guess: Python refuses to read thousands of digits."""

_NUMBER = re.compile(r"(?:(?<!\w)[-+\u2212])?(?:(?<![\w.])\.)?\d+(?:[.,]\d+)*")
_WHOLE = re.compile(r"([-+\u2212]?)(\d+|\d{1,3}(?:,\d{3})+)")
_THOUGHTS = AnswerReader()


class GuessNumber(Environment):
    """Answers guesses with "higher" or "lower". The row's gold answer is the number; ``Numbers`` is a task for it.

    The episode is over when the number is guessed, with the reward 1, or after ``max_turns`` guesses, with the reward
    0. A reply names one whole number outside of its thoughts (``<think>...</think>``): ``7``, ``My guess is -7.`` or
    ``1,000``. Any other reply, such as ``5 or 6`` or ``5.5``, is a lost guess.

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
        guess = _guess(reply)
        if guess == self.secret:
            return Step(done=True, reward=1.0, info={"guess": guess})
        if self.guesses == self.max_turns:
            return Step(done=True, reward=0.0, info={"guess": guess})
        hint = "no number" if guess is None else "higher" if guess < self.secret else "lower"
        return Step([{"role": "user", "content": hint}], info={"guess": guess})


def _guess(reply: Reply) -> int | None:
    """The whole number that a reply names; ``None`` if it names none, or several."""
    text = _THOUGHTS.read(Sample("", reply.text, prompt_end=reply.prompt_end)).text
    numbers = {_whole(number) for number in _NUMBER.findall(text)}
    return numbers.pop() if len(numbers) == 1 else None


def _whole(number: str) -> int | None:
    match = _WHOLE.fullmatch(number)
    if match is None or len(match[2]) > _MAX_DIGITS:
        return None
    value = int(match[2].replace(",", ""))
    return value if match[1] in ("", "+") else -value
