"""Intervals of measured shares and means. Imports no torch: ``grpo compare`` uses it too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


def normal(total: float, squares: float, count: int) -> Interval:
    """The interval of a mean by the central limit theorem: ``m -+ z s / sqrt(n)``, with the sample's ``s``.

    Args:
        total: the sum of the values.
        squares: the sum of their squares.
        count: how many there are; of one, the interval is the value.
    """
    mean = total / count
    variance = max(0.0, squares - count * mean * mean) / max(1, count - 1)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def wilson(correct: int, count: int) -> Interval:
    """Wilson's score interval of a proportion: ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``.

    Wilson, JASA 22 (1927). Unlike the normal interval, it has a positive width at 0 and 1.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p = correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(p, centre - half, centre + half)
