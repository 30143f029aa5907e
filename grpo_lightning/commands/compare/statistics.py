"""Intervals and tests on per-problem results.

Shape letters in this package: ``S`` seeds (runs of one method), ``Q`` problems (questions), ``R`` resamples. Entries of
a matrix ``x_SQ`` are 1 for a solved problem and 0 for a failed one, or differences of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_lightning.intervals import LEVEL, Interval, wilson

Array = NDArray[np.float64]


def two_way(x_SQ: Array) -> Interval:
    """The mean over seeds and problems, with an interval that generalises to other seeds *and* other problems.

    The model is ``x_sq = m + seed_s + problem_q + rest_sq``, all random (two-way analysis of variance without
    replication; Searle, Casella and McCulloch, Variance Components, 1992). Then ``Var(mean) = (MS_seed + MS_problem -
    MS_rest) / SQ``, where ``MS_seed`` is taken to be at least ``MS_rest``; Student's t has Satterthwaite's degrees of
    freedom.

    Args:
        x_SQ: the results, for at least two seeds and two problems.
    """
    seeds, problems = x_SQ.shape
    mean = float(x_SQ.mean())
    seed_means_S, problem_means_Q = x_SQ.mean(axis=1), x_SQ.mean(axis=0)
    rest_SQ = x_SQ - seed_means_S[:, None] - problem_means_Q[None, :] + mean
    mean_squares = (
        problems * float(((seed_means_S - mean) ** 2).sum()) / (seeds - 1),
        seeds * float(((problem_means_Q - mean) ** 2).sum()) / (problems - 1),
        float((rest_SQ**2).sum()) / ((seeds - 1) * (problems - 1)),
    )
    ms_seed, ms_problem, ms_rest = mean_squares
    if ms_seed > ms_rest:
        total = ms_seed + ms_problem - ms_rest
        terms = zip(mean_squares, (seeds - 1, problems - 1, (seeds - 1) * (problems - 1)), strict=True)
        freedom = max(1.0, total**2 / sum(square**2 / degrees for square, degrees in terms))
    else:
        total, freedom = ms_problem, problems - 1.0
    half = student_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(total / x_SQ.size)
    return Interval(mean, mean - half, mean + half)


def accuracy(x_SQ: Array) -> Interval:
    """Wilson's interval for one seed, :func:`two_way` for several.

    If all results are equal there is no variance to estimate, and Wilson's interval is used.
    """
    if len(x_SQ) > 1 and x_SQ.shape[1] > 1:
        interval = two_way(x_SQ)
        if interval.high > interval.low:
            return Interval(interval.mean, max(0.0, interval.low), min(1.0, interval.high))
    return wilson(round(float(x_SQ[0].sum())), x_SQ.shape[1])


def student_quantile(p: float, freedom: float) -> float:
    """Compute the quantile of Student's t for ``p >= 0.5``, with ``t = sqrt(freedom) tan(angle)`` as the variable."""
    angle = np.linspace(0.0, math.pi / 2, 400_001)[:-1]
    density = np.cos(angle) ** (freedom - 1)
    steps = (density[1:] + density[:-1]) / 2
    mass = np.concatenate([[0.0], np.cumsum(steps)]) / (2 * steps.sum()) + 0.5
    return math.sqrt(freedom) * math.tan(float(np.interp(p, mass, angle)))


@dataclass(frozen=True)
class Bootstrap:
    """A mean difference with its percentile interval, and the two-sided p-value of no difference."""

    interval: Interval
    p: float


def paired_bootstrap(difference_Q: Array, resamples: int = 10_000) -> Bootstrap:
    """Bootstrap a mean paired difference over problems (Efron and Tibshirani, 1993, chapters 13 and 16.4).

    The p-value is ``(1 + #{|mean of a resample - mean| >= |mean|}) / (resamples + 1)``: the fraction of resamples of
    the centred differences, which represent the null hypothesis, whose mean is at least as extreme as the observed one.
    """
    generator = np.random.default_rng(0)  # the same in every report
    mean = float(difference_Q.mean())
    means_R = np.empty(resamples)
    for start in range(0, resamples, 500):  # in batches: all indices at once would be R x Q numbers
        batch = min(500, resamples - start)
        indices = generator.integers(0, len(difference_Q), size=(batch, len(difference_Q)))
        means_R[start : start + batch] = difference_Q[indices].mean(axis=1)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Sums of the same numbers in a different order differ in their last digits.
    extreme = int((np.abs(means_R - mean) >= abs(mean) - 1e-12).sum())
    return Bootstrap(Interval(mean, float(low), float(high)), (1 + extreme) / (resamples + 1))


@dataclass(frozen=True)
class McNemar:
    """Problems that only the first solved, only the second, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first_Q: Array, second_Q: Array) -> McNemar:
    """McNemar's exact test: under the null hypothesis each run solves half of the problems on which they differ."""
    only_first = int(((first_Q == 1) & (second_Q == 0)).sum())
    only_second = int(((first_Q == 0) & (second_Q == 1)).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return McNemar(only_first, only_second, min(1.0, float(2 * tail / 2**count)) if count else 1.0)


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for multiple comparisons (Holm, Scand. J. Statist. 6, 1979); the order is kept."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
