from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.advantages import (
    Advantage,
    BatchStd,
    GroupStd,
    LeaveOneOut,
    RewardMoments,
    Unscaled,
    named_advantage,
)
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import (
    batch_std_advantages,
    group_std_advantages,
    has_signal,
    leave_one_out_advantages,
    unscaled_advantages,
)
from tests.objectives.cases import subclasses

KINDS = ["group", "none-scaled", "batch-std", "leave_one_out"]
NAN = math.nan


def group_advantages(rewards, *, kind="group", eps=None, batch_std=None):
    """The advantage of a name, with another eps where it has one."""
    advantage = named_advantage(kind)
    if eps is not None and hasattr(advantage, "eps"):
        advantage = type(advantage)(eps)
    return advantage(rewards, None if batch_std is None else RewardMoments(torch.tensor(NAN), batch_std))


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
    with pytest.raises(ConfigError, match=r"model.advantage: must be one of group, .* not 'grpo'"):
        named_advantage("grpo")
    with pytest.raises(ValueError, match="two dimensions"):
        group_advantages(rewards[0])
    for kind in (GroupStd, BatchStd):
        with pytest.raises(ConfigError, match=f"{kind.__name__}: eps must not be negative"):
            kind(-1.0)
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([[1.0, math.inf]]))


def test_only_the_std_of_the_batch_looks_at_the_moments():
    rewards = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 3.0]])
    for kind in KINDS:
        stds = (torch.tensor(0.5), torch.tensor(3.0))
        one, other = (group_advantages(rewards, kind=kind, batch_std=std) for std in stds)
        assert torch.equal(one, other) is (kind != "batch-std")


def test_each_class_is_its_function():
    rewards = torch.tensor([[1.0, NAN, 0.25, 0.0], [2.0, 2.0, 2.0, 2.0]])
    moments = RewardMoments(torch.tensor(0.7), torch.tensor(0.3))
    assert torch.equal(GroupStd(0.1)(rewards, moments), group_std_advantages(rewards, 0.1))
    assert torch.equal(BatchStd(0.1)(rewards, moments), batch_std_advantages(rewards, moments.std, 0.1))
    assert torch.equal(Unscaled()(rewards, moments), unscaled_advantages(rewards))
    assert torch.equal(LeaveOneOut()(rewards, moments), leave_one_out_advantages(rewards))


# -- what holds for every advantage; a new class of the project is tried here without being named ----------------------


@pytest.mark.parametrize("kind", subclasses(Advantage), ids=lambda kind: kind.__name__)
def test_the_contract(kind):
    kind().check()
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, NAN, 0.0], [NAN, NAN, NAN], [1.0, NAN, NAN]])
    advantages = kind()(rewards)
    assert advantages.dtype == torch.float32
    assert advantages.isfinite().all()
    assert not advantages[rewards.isnan()].any()
    assert kind()(rewards.double()).dtype == torch.float64
    assert advantages[0].any()
    # The order of the completions of a group means nothing.
    torch.testing.assert_close(kind()(rewards.flip(1)).flip(1), advantages)


def test_the_list_holds_the_advantages_of_the_package():
    assert {GroupStd, BatchStd, Unscaled, LeaveOneOut} <= set(subclasses(Advantage))
    assert [named_advantage(name).name for name in KINDS] == KINDS


class AgainstTheStep(Advantage):
    """A baseline beyond the group: the neighbour of the wrong ones below."""

    smallest_group = 1

    def advantages(self, rewards_BG, moments):
        return rewards_BG - moments.mean


class OnePerGroup(AgainstTheStep):
    def advantages(self, rewards_BG, moments):
        return super().advantages(rewards_BG, moments).sum(1)


class Spoiled(AgainstTheStep):
    def advantages(self, rewards_BG, moments):
        return rewards_BG - rewards_BG.mean(1, keepdim=True)


def test_an_advantage_of_ones_own():
    AgainstTheStep().check()
    assert AgainstTheStep.name == "AgainstTheStep"
    got = AgainstTheStep()(torch.tensor([[1.0, NAN], [0.0, 0.0]]), RewardMoments(torch.tensor(0.25), torch.tensor(1.0)))
    assert got.tolist() == [[0.75, 0.0], [-0.25, -0.25]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OnePerGroup, r"OnePerGroup.advantages must return a tensor of shape \(3, 3\), not \(3,\)"),
        (Spoiled, "Spoiled.advantages returned NaN or infinity for a finite reward"),
    ],
)
def test_an_advantage_that_breaks_the_contract_is_refused_in_one_sentence(kind, message):
    with pytest.raises(ConfigError, match=message) as error:
        kind().check()
    assert "\n" not in str(error.value)
