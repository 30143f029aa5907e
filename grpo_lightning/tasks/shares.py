"""Numbers of rows by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(size: int, weights: Sequence[float]) -> list[int]:
    """Divide ``size`` rows by weight, with at least one row each. The largest remainders are rounded up.

    >>> apportion(10, [2, 1, 1])
    [5, 3, 2]
    """
    shares = [size * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda number: counts[number] - shares[number])
    for number in by_remainder[: size - sum(counts)]:
        counts[number] += 1
    for number, count in enumerate(counts):
        if count == 0:
            counts[counts.index(max(counts))] -= 1
            counts[number] = 1
    return counts
