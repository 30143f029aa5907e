"""What a report shows of the policies: accuracy, or mean rewards where these do not tell right from wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_lightning.commands.compare.cells import share, signed
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.runs import TestResults


@dataclass(frozen=True)
class Measure:
    """A number by which policies are judged.

    Args:
        name: what it is.
        curve: its curve of validations.
        of_test: its value in a test, if it was written down.
        show: the value as text.
        show_gain: a difference of two values as text, in ``unit``.
        unit: what differences are counted in.
    """

    name: str
    curve: str
    of_test: Callable[[TestResults], float | None]
    show: Callable[[float], str]
    show_gain: Callable[[float], str]
    unit: str


def signed_reward(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # never -0.000


ACCURACY = Measure("accuracy", "val/accuracy", lambda test: test.accuracy, share, signed, "points")
REWARD = Measure("reward", "val/reward", lambda test: test.reward, "{:.3f}".format, signed_reward, "reward")


def measure_of(methods: Sequence[Method]) -> Measure:
    """Mean rewards if any method is graded, else accuracy."""
    return REWARD if any(method.is_graded for method in methods) else ACCURACY
