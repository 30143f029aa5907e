"""Generated word problems in the style of GSM8K, for runs without a data set or a large model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.tasks._generate import Generated, require
from grpo_lightning.types import Prompt

Operation = Literal["+", "-", "*"]

_PEOPLE = (("Tom", "He"), ("Ben", "He"), ("Max", "He"), ("Anna", "She"), ("Mia", "She"), ("Eva", "She"))
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
_SENTENCES: dict[Operation, tuple[str, ...]] = {
    "+": ("buys {n} more", "finds {n} more", "gets {n} more"),
    "-": ("sells {n}", "loses {n}", "gives away {n}"),
    "*": ("then has {n} times as many",),
}


@dataclass(frozen=True)
class Problem:
    """The numbers of one problem, without its words: a start value and the operations applied to it in order."""

    start: int
    steps: tuple[tuple[Operation, int], ...]

    def content(self) -> str:
        """Return a key that is equal for problems with the same numbers."""
        return repr((self.start, self.steps))

    def solve(self) -> tuple[list[str], int]:
        """Return one equation per step, and the final value."""
        lines, value = [], self.start
        for operation, operand in self.steps:
            result = apply(operation, value, operand)
            lines.append(f"{value}{operation}{operand}={result}")
            value = result
        return lines, value


def apply(operation: Operation, value: int, operand: int) -> int:
    """Return the value after one step."""
    if operation == "+":
        return value + operand
    return value - operand if operation == "-" else value * operand


class Arithmetic(Generated[Problem]):
    """Generated word problems: addition, subtraction and multiplication of small integers, step by step.

    A problem and its solution::

        Tom has 12 apples. He buys 7 more. He gives away 5. How many apples now?

        12+7=19
        19-5=14
        #### 14

    The prompt template asks for such lines; ``MathVerifier`` reads the last one.

    Any two problems differ in their numbers, not only in their words, and no problem is in two splits, whatever the
    seeds. No intermediate value is negative or above ``max_value``.

    Args:
        min_steps: minimum number of equations per problem.
        max_steps: maximum number of equations per problem.
        max_operand: largest start value, and largest number to add or subtract.
        max_factor: largest factor; 1 disables multiplication.
        max_value: largest intermediate value; it bounds how many digits the policy has to handle.
        options: options of :class:`Generated`.
    """

    name = "arithmetic"
    more = "max_operand, max_value or max_steps"
    default_template = (
        "{prompt}\n\nSolve the problem step by step, one equation per line. "
        "Then write the final number on a last line of its own in the form: #### N"
    )

    def __init__(
        self,
        min_steps: int = 2,
        max_steps: int = 3,
        max_operand: int = 12,
        max_factor: int = 3,
        max_value: int = 99,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.min_steps = min_steps
        self.max_steps = max_steps
        self.max_operand = max_operand
        self.max_factor = max_factor
        self.max_value = max_value
        require(min_steps >= 1, "min_steps", min_steps, "must be at least 1")
        require(max_steps >= min_steps, "max_steps", max_steps, f"must be at least min_steps, {min_steps}")
        require(max_operand >= 1, "max_operand", max_operand, "must be at least 1")
        require(max_factor >= 1, "max_factor", max_factor, "must be at least 1")
        require(max_value >= max_operand, "max_value", max_value, f"must be at least max_operand, {max_operand}")

    def _draw(self, generator: random.Random) -> Problem:
        start = value = generator.randint(1, self.max_operand)
        steps: list[tuple[Operation, int]] = []
        for _ in range(generator.randint(self.min_steps, self.max_steps)):
            largest: dict[Operation, int] = {
                "+": min(self.max_operand, self.max_value - value),
                "-": min(self.max_operand, value),
                "*": min(self.max_factor, self.max_value // max(value, 1)),
            }
            smallest: dict[Operation, int] = {"+": 1, "-": 1, "*": 2}
            operation = generator.choice([op for op in smallest if smallest[op] <= largest[op]])
            operand = generator.randint(smallest[operation], largest[operation])
            steps.append((operation, operand))
            value = apply(operation, value, operand)
        return Problem(start, tuple(steps))

    def _content(self, row: Problem) -> str:
        return row.content()

    def _prompt(self, row: Problem, generator: random.Random) -> Prompt:
        name, pronoun = generator.choice(_PEOPLE)
        things = generator.choice(_THINGS)
        sentences = [f"{name} has {row.start} {things}."]
        for operation, operand in row.steps:
            sentences.append(f"{pronoun} {generator.choice(_SENTENCES[operation]).format(n=operand)}.")
        sentences.append(f"How many {things} now?")
        lines, answer = row.solve()
        return Prompt(
            messages=self.messages(" ".join(sentences)),
            answer=str(answer),
            solution="\n".join([*lines, f"#### {answer}"]),
        )
