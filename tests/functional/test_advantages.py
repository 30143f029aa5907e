from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.functional import group_advantages, has_signal

KINDS = ["group", "none-scaled", "batch-std", "leave_one_out"]
NAN = math.nan

rewards_lists = st.integers(1, 5).flatmap(
    lambda group: st.lists(
        st.lists(st.floats(-10, 10, width=32), min_size=group, max_size=group), min_size=1, max_size=4
    )
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # by hand, for the rewards 1, 0, 0, 1 and 3, 0, 0, 0: means 1/2 and 3/4, squared deviations 1 and 27/4
        ("group", [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]),
        ("none-scaled", [[0.5, -0.5, -0.5, 0.5], [2.25, -0.75, -0.75, -0.75]]),
        ("batch-std", [[0.5, -0.5, -0.5, 0.5], [2.25, -0.75, -0.75, -0.75]]),
        ("leave_one_out", [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [3.0, -1.0, -1.0, -1.0]]),
    ],
)
def test_values_by_hand(kind, expected):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor(expected)
    if kind == "group":
        expected[0] /= math.sqrt(1 / 3)  # the second std, sqrt(27/4 / 3) = 3/2, is in the numbers above
    if kind == "batch-std":
        expected /= math.sqrt((2 * 0.375**2 + 2.375**2 + 5 * 0.625**2) / 7)  # of all eight, whose mean is 5/8
    torch.testing.assert_close(group_advantages(rewards, kind=kind, eps=0.0), expected)


def by_loops(rewards: list[list[float]], kind: str, eps: float) -> list[list[float]]:
    everything = [reward for group in rewards for reward in group if not math.isnan(reward)]
    result = []
    for group in rewards:
        valid = [reward for reward in group if not math.isnan(reward)]
        row = []
        for index, reward in enumerate(group):
            if math.isnan(reward) or len(set(valid)) < 2:
                row.append(0.0)
            elif kind == "leave_one_out":
                others = [other for j, other in enumerate(group) if j != index and not math.isnan(other)]
                row.append(reward - statistics.fmean(others))
            else:
                scales = {"group": valid, "batch-std": everything}
                scale = statistics.stdev(scales[kind]) + eps if kind in scales else 1.0
                row.append((reward - statistics.fmean(valid)) / scale)
        result.append(row)
    return result


@settings(deadline=None)
@given(rewards=rewards_lists, data=st.data(), eps=st.sampled_from([1e-4, 0.1]))
@pytest.mark.parametrize("kind", KINDS)
def test_papers_formula_by_loops_with_broken_rewards(kind, rewards, data, eps):
    rewards = [[NAN if data.draw(st.integers(0, 4)) == 0 else reward for reward in group] for group in rewards]
    expected = torch.tensor(by_loops(rewards, kind, eps), dtype=torch.float64)
    got = group_advantages(torch.tensor(rewards, dtype=torch.float64), kind=kind, eps=eps)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(rewards=rewards_lists, shift=st.floats(-5, 5), scale=st.floats(0.5, 20))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_to_zero_and_ignores_a_shift_and_up_to_eps_a_scale(kind, rewards, shift, scale):
    # Rounded, so that a shift neither makes different rewards equal nor equal ones different.
    rewards = torch.tensor(rewards, dtype=torch.float64).mul(8).round().div(8)
    shift, scale = round(shift * 8) / 8, round(scale * 8) / 8
    advantages = group_advantages(rewards, kind=kind)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(rewards)).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(group_advantages(rewards + shift, kind=kind), advantages)
    power = 0 if kind in ("group", "batch-std") else 1
    torch.testing.assert_close(
        group_advantages(rewards * scale, kind=kind), advantages * scale**power, rtol=1e-2, atol=1e-9
    )


@settings(deadline=None)
@given(rewards=rewards_lists)
def test_leave_one_out_is_the_centred_reward_stretched(rewards):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    group = rewards.shape[1]
    stretched = group / max(group - 1, 1) * group_advantages(rewards, kind="none-scaled")
    torch.testing.assert_close(group_advantages(rewards, kind="leave_one_out"), stretched)


@settings(deadline=None)
@given(reward=st.floats(-1e6, 1e6, width=32), group=st.integers(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_constant_group_is_exactly_zero(kind, reward, group):
    rewards = torch.full((2, group), reward)
    rewards[1] = torch.arange(group)  # the batch as a whole varies
    assert not group_advantages(rewards, kind=kind, eps=0.0)[0].any()


def test_constant_group_of_tenths_whose_float_mean_is_off():
    rewards = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert rewards.mean() != 0.1
    assert not group_advantages(rewards).any()


@pytest.mark.parametrize("kind", KINDS)
def test_broken_rewards_are_left_out(kind):
    rewards = torch.tensor([[1.0, NAN, 0.0, NAN], [NAN, 1.0, NAN, NAN], [NAN, NAN, NAN, NAN]])
    options = {"batch_std": torch.tensor(0.5)} if kind == "batch-std" else {}
    advantages = group_advantages(rewards, kind=kind, **options)
    alone = group_advantages(torch.tensor([[1.0, 0.0]]), kind=kind, **options)
    assert torch.equal(advantages[0, [0, 2]], alone[0])
    assert torch.equal(has_signal(advantages), torch.tensor([True, False, False]))
    assert not advantages[rewards.isnan()].any()
    assert advantages.isfinite().all()


def test_batch_std_of_all_ranks_replaces_the_local_one():
    everything = torch.tensor([[0.0, 1.0], [5.0, 9.0]])
    whole = group_advantages(everything, kind="batch-std")
    ranks = [group_advantages(rows, kind="batch-std", batch_std=everything.std()) for rows in everything.split(1)]
    torch.testing.assert_close(torch.cat(ranks), whole)
    assert not torch.allclose(group_advantages(everything[:1], kind="batch-std"), whole[:1])


def test_all_kinds_differ_and_eps_matters():
    rewards = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 3.0]])
    results = [group_advantages(rewards, kind=kind) for kind in KINDS]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])
    assert not torch.allclose(group_advantages(rewards), group_advantages(rewards, eps=1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_other_dtypes_are_computed_in_float32(dtype):
    rewards = torch.tensor([[1, 0, 0, 1], [3, 0, 0, 0]])
    assert torch.equal(group_advantages(rewards.to(dtype)), group_advantages(rewards.float()))


def test_does_not_change_the_rewards_given():
    rewards = torch.tensor([[1.0, NAN, 0.0]])
    before = rewards.clone()
    group_advantages(rewards)
    torch.testing.assert_close(rewards, before, equal_nan=True)


def test_bad_arguments():
    rewards = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="kind is 'grpo', but must be one of 'group'"):
        group_advantages(rewards, kind="grpo")
    with pytest.raises(ValueError, match="two dimensions"):
        group_advantages(rewards[0])
    with pytest.raises(ValueError, match="eps"):
        group_advantages(rewards, eps=-1.0)
    with pytest.raises(ValueError, match="batch_std is only used"):
        group_advantages(rewards, batch_std=torch.tensor(1.0))
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([[1.0, math.inf]]))
