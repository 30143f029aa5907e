"""Generated descriptions of small functions, for runs without a data set or a large model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.tasks._generate import Generated, require
from grpo_lightning.types import Prompt

Operation = Literal["+", "-", "*", "**"]

_WORDS: dict[Operation, tuple[str, ...]] = {
    "+": ("add {n}", "increase by {n}"),
    "-": ("subtract {n}", "decrease by {n}"),
    "*": ("multiply by {n}",),
    "**": ("square it",),
}
_SPECIAL_WORDS: dict[tuple[Operation, int], tuple[str, ...]] = {
    ("*", 2): ("double it", "multiply by 2"),
    ("*", 3): ("triple it", "multiply by 3"),
}
# A program that passes is correct for every x: no other program of this task agrees with the reference on all of these.
_TESTED = (-7, -2, 0, 1, 3, 10)


@dataclass(frozen=True)
class Program:
    """The operations applied to ``x``, in order."""

    steps: tuple[tuple[Operation, int], ...]

    def run(self, x: int) -> int:
        """Return the value for one ``x``."""
        for operation, operand in self.steps:
            x = apply(operation, x, operand)
        return x

    def source(self) -> str:
        """Write a reference program: one expression, with only the parentheses that precedence requires."""
        expression, is_sum = "x", False
        for operation, operand in self.steps:
            binds_tightly = operation in ("*", "**")
            # -x**2 is not (-x)**2, and x*2**2 is not (x*2)**2: the base of a power needs parentheses unless it is x.
            if binds_tightly and (is_sum or (operation == "**" and expression != "x")):
                expression = f"({expression})"
            expression += f"{operation}{operand}"
            is_sum = not binds_tightly
        return f"def f(x):\n    return {expression}"

    def content(self) -> str:
        """Return a key that is equal for descriptions of the same function, such as "add 1, then 2" and "add 3"."""
        return repr([self.run(x) for x in _TESTED])


def apply(operation: Operation, value: int, operand: int) -> int:
    """Return the value after one step."""
    if operation == "+":
        return value + operand
    if operation == "-":
        return value - operand
    return value * operand if operation == "*" else value**operand


class Programs(Generated[Program]):
    """Generated descriptions of functions to write in Python.

    The text of a row, which the prompt template puts into a request, and its solution::

        add 3, then double it, then subtract 5

        def f(x):
            return (x+3)*2-5

    The tests are assert lines in ``metadata["tests"]``, and the function's name is in ``metadata["entry_point"]``, as
    ``CodeVerifier`` expects. The prompt does not show them, and any program that passes is correct, however it is
    written. Any two descriptions are of different functions, and no function is in two splits, whatever the seeds.

    Args:
        min_steps: minimum number of steps per function.
        max_steps: maximum number of steps per function.
        max_operand: largest number to add or subtract.
        max_factor: largest factor; 1 disables multiplication.
        squares: whether one of the steps may be a square.
        options: options of :class:`Generated`.
    """

    name = "programs"
    more = "max_operand, max_factor or max_steps"
    default_template = (
        "Write a Python function f(x) that takes a number x and returns the result of these steps: {prompt}.\n\n"
        "Answer with the code of the function and nothing else."
    )

    def __init__(
        self,
        min_steps: int = 2,
        max_steps: int = 3,
        max_operand: int = 30,
        max_factor: int = 9,
        squares: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.min_steps = min_steps
        self.max_steps = max_steps
        self.max_operand = max_operand
        self.max_factor = max_factor
        self.squares = squares
        require(min_steps >= 1, "min_steps", min_steps, "must be at least 1")
        require(max_steps >= min_steps, "max_steps", max_steps, f"must be at least min_steps, {min_steps}")
        require(max_operand >= 1, "max_operand", max_operand, "must be at least 1")
        require(max_factor >= 1, "max_factor", max_factor, "must be at least 1")

    def _draw(self, generator: random.Random) -> Program:
        steps: list[tuple[Operation, int]] = []
        for _ in range(generator.randint(self.min_steps, self.max_steps)):
            choices: list[Operation] = ["+", "-"]
            if self.max_factor > 1:
                choices.append("*")
            # At most one square: the tests cannot distinguish polynomials of a higher degree.
            if self.squares and ("**", 2) not in steps:
                choices.append("**")
            operation = generator.choice(choices)
            if operation == "**":
                operand = 2
            elif operation == "*":
                operand = generator.randint(2, self.max_factor)
            else:
                operand = generator.randint(1, self.max_operand)
            steps.append((operation, operand))
        return Program(tuple(steps))

    def _content(self, row: Program) -> str:
        return row.content()

    def _prompt(self, row: Program, generator: random.Random) -> Prompt:
        phrases = [
            generator.choice(_SPECIAL_WORDS.get((operation, operand), _WORDS[operation])).format(n=operand)
            for operation, operand in row.steps
        ]
        return Prompt(
            messages=self.messages(", then ".join(phrases)),
            metadata={
                "tests": "\n".join(f"assert f({x}) == {row.run(x)}" for x in _TESTED),
                "entry_point": "f",
            },
            solution=row.source(),
        )
