"""Intervals and tests against hand-computed numbers and second formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.commands.compare.cells import signed
from grpo_lightning.commands.compare.statistics import (
    accuracy,
    holm,
    mcnemar,
    paired_bootstrap,
    student_quantile,
    two_way,
)
from grpo_lightning.intervals import wilson


def test_students_quantiles_against_the_printed_table() -> None:
    # Any printed table of t, two-sided 5 %.
    for freedom, value in ((1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1000, 1.962)):
        assert student_quantile(0.975, freedom) == pytest.approx(value, abs=6e-4)


def test_two_way_against_the_sums_by_hand() -> None:
    # Two seeds, three problems: rows 1 1 0 and 1 0 0. Seeds 2/3, 1/3; problems 1, 1/2, 0; mean 1/2.
    # SS_seed = 3 (1/36 + 1/36) = 1/6; SS_problem = 2 (1/4 + 0 + 1/4) = 1; SS_total = 3/2; SS_rest = 1/3.
    # MS = 1/6, 1/2, 1/6: the seeds' is not above the rest's, so Var = MS_problem / 6 = 1/12, with 2 degrees.
    interval = two_way(np.array([[1.0, 1, 0], [1, 0, 0]]))
    assert interval.high - 0.5 == pytest.approx(4.30265 * math.sqrt(1 / 12), rel=1e-4)
    # With seeds that differ more: rows 1 1 0 and 0 0 0. Seeds 2/3, 0; problems 1/2, 1/2, 0; mean 1/3.
    # SS_seed = 2/3, SS_problem = 1/3, SS_total = 2 - 6/9 = 4/3, SS_rest = 1/3. MS = 2/3, 1/6, 1/6; total 2/3;
    # degrees (2/3)^2 / ((2/3)^2 / 1 + (1/6)^2 / 2 + (1/6)^2 / 2) = (4/9) / (4/9 + 1/36) = 16/17, at least 1.
    interval = two_way(np.array([[1.0, 1, 0], [0, 0, 0]]))
    assert interval.high - 1 / 3 == pytest.approx(12.7062 * math.sqrt(2 / 3 / 6), rel=1e-4)


def test_two_way_covers_what_it_claims() -> None:
    """A simulation with known seed and problem effects: 95 % of the intervals contain the true mean."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        seeds, problems = generator.normal(0, 0.05, (4, 1)), generator.normal(0, 0.3, (1, 60))
        interval = two_way(0.5 + seeds + problems + generator.normal(0, 0.3, (4, 60)))
        held += interval.low <= 0.5 <= interval.high
    # 1.5 % more or less than 95 % is within two standard errors of 400 draws, and Satterthwaite is an approximation.
    assert 0.92 <= held / 400 <= 0.985


def test_accuracy_uses_wilson_for_one_seed_and_without_variance() -> None:
    one = np.array([[1.0, 1, 0, 1]])
    assert accuracy(one) == wilson(3, 4)
    assert accuracy(np.ones((3, 5))) == wilson(5, 5)
    several = accuracy(np.array([[1.0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]]))
    assert several.mean == pytest.approx(10 / 12)
    assert several.high == 1.0, "no accuracy is above 1"
    assert several.low > 0


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test_of_the_problems_that_differ(first: int, second: int, both: int) -> None:
    rows = [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(1.0, 1.0)] * both + [(0.0, 0.0)]
    found = mcnemar(*np.array(rows).T)
    assert (found.only_first, found.only_second) == (first, second)
    # All outcomes of n fair coins, by the number of heads: those at least as far from n/2 as the observed one.
    count = first + second
    heads = np.array([1.0])
    for _ in range(count):
        heads = np.convolve(heads, [0.5, 0.5])
    far = [mass for k, mass in enumerate(heads) if abs(2 * k - count) >= abs(first - second)]
    assert found.p == pytest.approx(sum(far))


def test_mcnemar_by_hand() -> None:
    # 8 against 1: 2 (1 + 9) / 512.
    found = mcnemar(np.array([1.0] * 8 + [0.0]), np.array([0.0] * 8 + [1.0]))
    assert found.p == pytest.approx(20 / 512)


def test_the_bootstrap_against_all_possible_resamples() -> None:
    differences = np.array([1.0, 0.0, 0.0, -1.0, 1.0])
    every = np.array([np.mean(rows) for rows in itertools.product(differences, repeat=5)])
    extreme = np.mean(np.abs(every - differences.mean()) >= differences.mean() - 1e-12)
    found = paired_bootstrap(differences, 40_000)
    assert found.p == pytest.approx(extreme, abs=0.01)
    assert found.interval.mean == pytest.approx(0.2)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])))
    assert paired_bootstrap(differences, 500) == paired_bootstrap(differences, 500), "no chance in a report"
    assert paired_bootstrap(np.zeros(4), 500).p == 1.0
    assert paired_bootstrap(np.ones(4), 500).p == pytest.approx(1 / 501)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 times 3, 2, 1: .03, .04, and .03 raised to .04.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert [signed(value) for value in (-0.0, -0.0004, 0.0, -0.0006, 0.25)] == ["+0.0", "+0.0", "+0.0", "-0.1", "+25.0"]
