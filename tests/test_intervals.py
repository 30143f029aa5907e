"""The interval of a share against published numbers and the test that it inverts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.intervals import Interval, normal, wilson


def test_the_interval_of_a_mean() -> None:
    # By hand: 1, 2 and 3 have mean 2 and standard deviation 1.
    interval = normal(6.0, 14.0, 3)
    assert (interval.low, interval.mean, interval.high) == pytest.approx(
        (2 - 1.959964 / 3**0.5, 2, 2 + 1.959964 / 3**0.5)
    )
    assert normal(-19.0, 361.0, 1) == Interval(-19.0, -19.0, -19.0)


def test_wilson_against_published_numbers() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for correct, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                      (1, 29, 0.0061, 0.1718)):  # fmt: skip
        interval = wilson(correct, count)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
        assert interval.mean == correct / count


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_ends_are_where_the_score_test_rejects(case: tuple[int, int]) -> None:
    correct, count = case
    interval = wilson(correct, count)
    for end in (interval.low, interval.high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(correct / count - end) / math.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, abs=1e-4)


def test_an_interval_reads_as_a_person_writes_it() -> None:
    assert str(Interval(0.125, 0.0641, 0.2277)) == "0.125 (95 % interval 0.064 to 0.228)"
