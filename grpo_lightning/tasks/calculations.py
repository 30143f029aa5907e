"""Generated questions of which some need a calculator, for conversations with tools and a tiny model."""

from __future__ import annotations

import json
import random
from typing import Any, Literal, NamedTuple

from grpo_lightning.tasks._generate import Generated, require
from grpo_lightning.types import Prompt


class Question(NamedTuple):
    """Two numbers, and what is asked about them."""

    kind: Literal["product", "repeat"]
    left: int
    right: int

    @property
    def expression(self) -> str:
        return f"{self.left}*{self.right}" if self.kind == "product" else f"{self.left}{self.right}"

    @property
    def answer(self) -> str:
        return str(self.left * self.right) if self.kind == "product" else self.expression


class Calculations(Generated[Question]):
    """Questions that a small model answers only with a calculator, and others that it answers as well without one.

    ``Compute 47*83.`` is a product, ``Repeat 4783.`` asks for nothing but the number; there are as many of either. The
    answer is written as ``#### 3901``.

    With ``demonstrations``, rows are turns to imitate before reinforcement learning: an answer at once, a call of a
    tool ``calculator(expression)``, or the answer after its result, by chance and whatever the question.

    Args:
        digits: digits of each number.
        demonstrations: whether rows are turns to imitate.
        calls: share of the demonstrations in which the calculator is called.
        options: options of :class:`Generated`.
    """

    name = "calculations"
    more = "digits"

    def __init__(self, digits: int = 2, demonstrations: bool = False, calls: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        require(digits >= 1, "digits", digits, "must be at least 1")
        self.digits = digits
        self.demonstrations = demonstrations
        self.calls = calls

    def gold_completion(self, prompt: Prompt) -> str:
        return f"#### {prompt.answer}"

    def _draw(self, generator: random.Random) -> Question:
        left, right = (generator.randrange(10 ** (self.digits - 1), 10**self.digits) for _ in range(2))
        return Question(generator.choice(("product", "repeat")), left, right)

    def _content(self, row: Question) -> str:
        return repr(tuple(row))

    def _prompt(self, row: Question, generator: random.Random) -> Prompt:
        word = "Compute" if row.kind == "product" else "Repeat"
        messages, answer = self.messages(f"{word} {row.expression}."), f"#### {row.answer}"
        if self.demonstrations and generator.random() < self.calls:
            call = json.dumps({"name": "calculator", "arguments": {"expression": row.expression}})
            called = f"<tool_call>{call}</tool_call>"
            if generator.random() < 0.5:
                return Prompt(messages, row.answer, {"kind": row.kind}, solution=called)
            messages += [{"role": "assistant", "content": called}, {"role": "tool", "content": row.answer}]
        return Prompt(messages, row.answer, {"kind": row.kind}, solution=answer)
