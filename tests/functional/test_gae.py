"""Token rewards, generalised advantages, whitening and the value loss, tested against definitions and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_lightning.functional import (
    adapted_kl_coef,
    explained_variance,
    gae,
    length_adaptive_lambda,
    token_rewards,
    turn_gae,
    value_loss,
    whiten,
)

RATES = st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0])


@st.composite
def episodes(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, a mask of ragged rows (some of them empty), and values after the rows."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    lengths = torch.tensor(draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows)))
    rewards, values = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(width) < lengths[:, None]
    return rewards, values, mask, torch.randn(rows, generator=generator, dtype=torch.float64)


def by_definition(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap_values: Tensor | None
) -> Tensor:
    """Equation 16 as written, in O(T^2): one sum of deltas per token."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        known = [*values[row, :length].tolist(), 0.0 if bootstrap_values is None else float(bootstrap_values[row])]
        deltas = [float(rewards[row, t]) + gamma * known[t + 1] - known[t] for t in range(length)]
        for t in range(length):
            advantages[row, t] = sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, length))
    return advantages


@settings(max_examples=200, deadline=None)
@given(episode=episodes(), gamma=RATES, lam=RATES, bootstrapped=st.booleans())
def test_gae_equals_its_definition(episode: Any, gamma: float, lam: float, bootstrapped: bool) -> None:
    rewards, values, mask, bootstrap_values = episode
    bootstrap = bootstrap_values if bootstrapped else None
    found = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_N=bootstrap)
    torch.testing.assert_close(found, by_definition(rewards, values, mask, gamma, lam, bootstrap))


@settings(max_examples=50, deadline=None)
@given(episode=episodes(), gamma=RATES)
def test_lambda_0_is_one_step_and_lambda_1_is_the_return(episode: Any, gamma: float) -> None:
    rewards, values, mask, _ = episode
    following = torch.cat([torch.where(mask, values, 0)[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    one_step = torch.where(mask, rewards + gamma * following - values, 0)
    torch.testing.assert_close(gae(rewards, values, mask, gamma=gamma, lam=0.0), one_step)
    returns, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], rewards[:, t] + gamma * ahead, 0)
        returns[:, t] = ahead
    found = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    torch.testing.assert_close(found, torch.where(mask, returns - values, 0))


def test_gae_by_hand() -> None:
    # Reward 1 at the end, values 0.5 0.25, gamma 1, lambda 0.5: delta = (-0.25, 0.75), A = (-0.25 + 0.375, 0.75).
    mask = torch.tensor([[True, True, False]])
    found = gae(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.25, 9.0]]), mask, gamma=1.0, lam=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.125, 0.75, 0.0]]))


# -- lambda by length -------------------------------------------------------------------------------------------------


def test_lambda_by_length_by_hand() -> None:
    # With alpha 0.05: 1 - 1/(0.05 * 100) = 0.8, 1 - 1/50 = 0.98; up to 20 tokens it would be 0 or less.
    found = length_adaptive_lambda(torch.tensor([100, 1000, 20, 5, 0]), 0.05)
    torch.testing.assert_close(found, torch.tensor([0.8, 0.98, 0.0, 0.0, 0.0]))


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 5000), alpha=st.floats(0.01, 2.0))
def test_the_weights_of_the_errors_add_up_to_a_share_of_the_length(length: int, alpha: float) -> None:
    lam = length_adaptive_lambda(torch.tensor([length], dtype=torch.float64), alpha).item()
    weights = lam ** torch.arange(200_000, dtype=torch.float64)
    assert weights.sum().item() == pytest.approx(max(alpha * length, 1), rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(episode=episodes(), gamma=RATES)
def test_each_row_has_its_lambda(episode: Any, gamma: float) -> None:
    rewards, values, mask, end = episode
    lam = torch.linspace(0.1, 1, len(rewards), dtype=torch.float64)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_N=end)
    for row in range(len(rewards)):
        one = slice(row, row + 1)
        expected = by_definition(rewards[one], values[one], mask[one], gamma, float(lam[row]), end[one])
        torch.testing.assert_close(found[one], expected)


# -- turns -------------------------------------------------------------------------------------------------------------


def test_turn_gae_by_hand() -> None:
    # An episode of two turns, rewards 1 and 2 at their ends, gamma 1, lambda 0.5; turns: discount 0.5, lambda 0.5.
    values = torch.tensor([[0.5, 1.0, 9.0], [2.0, 1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards, following = torch.tensor([[0.0, 1.0, 9.0], [0.0, 0.0, 2.0]]), torch.tensor([1, -1])
    found = turn_gae(rewards, values, mask, following, gamma=1.0, lam=0.5, turn_gamma=0.5, turn_lam=0.5)
    # The second turn as a whole: 2 - 2 = 0. Its tokens: deltas 1 - 2, 0 - 1, 2 - 0, so 2, -1 + 1, -1 + 0.
    # The first is followed by 0.5 * (2 + 0.5 * 0) = 1: its last token 1 + 1 - 1 = 1, its first 1 - 0.5 + 0.5 * 1 = 1.
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 2.0]]))
    more = turn_gae(rewards, values - 1, mask, following, gamma=1.0, lam=0.5, turn_gamma=0.5, turn_lam=0.5)
    # The second turn as a whole: 2 - 1 = 1. The first is followed by 0.5 * (1 + 0.5 * 1) = 0.75: 1 + 0.75 - 0 = 1.75.
    assert more[0].tolist() == [0 + 0.0 - -0.5 + 0.5 * 1.75, 1.75, 0.0]


def by_turns(
    rewards: list[list[float]], values: list[list[float]], end: float, rates: tuple[float, float, float, float]
) -> list[list[float]]:
    """One episode, with the sums written out: turns by their TD errors, tokens by theirs."""
    gamma, lam, turn_gamma, turn_lam = rates
    starts = [turn[0] for turn in values]
    count = len(rewards)
    steps = [gamma ** (len(turn) - 1) * (turn_gamma if k + 1 < count else gamma) for k, turn in enumerate(rewards)]
    deltas = [
        sum(gamma**t * reward for t, reward in enumerate(rewards[k])) + steps[k] * [*starts, end][k + 1] - starts[k]
        for k in range(count)
    ]
    wholes = [
        sum(math.prod(steps[k:later]) * turn_lam ** (later - k) * deltas[later] for later in range(k, count))
        for k in range(count)
    ]
    found = []
    for k, turn in enumerate(rewards):
        length, after = len(turn), end
        errors = [turn[t] + gamma * [*values[k], after][t + 1] - values[k][t] for t in range(length)]
        if k + 1 < count:
            errors[-1] = turn[-1] + turn_gamma * (starts[k + 1] + turn_lam * wholes[k + 1]) - values[k][-1]
        found.append([sum((gamma * lam) ** (j - t) * errors[j] for j in range(t, length)) for t in range(length)])
    return found


@st.composite
def conversations(draw: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Episodes of one to four turns, the rows round by round: rewards, values, mask, following rows, values at ends."""
    turns = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = [(episode, turn) for turn in range(max(turns)) for episode, count in enumerate(turns) if turn < count]
    following = torch.tensor([rows.index((e, t + 1)) if (e, t + 1) in rows else -1 for e, t in rows])
    lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rewards, values = (torch.randn(len(rows), 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(5) < lengths[:, None]
    ends = torch.where(following < 0, torch.randn(len(rows), generator=generator, dtype=torch.float64), math.nan)
    return rewards, values, mask, following, ends


@settings(max_examples=100, deadline=None)
@given(talk=conversations(), rates=st.tuples(RATES, RATES, RATES, RATES))
def test_turn_gae_equals_its_definition(talk: Any, rates: tuple[float, float, float, float]) -> None:
    rewards, values, mask, following, ends = talk
    gamma, lam, turn_gamma, turn_lam = rates
    found = turn_gae(
        torch.where(mask, rewards, math.nan), torch.where(mask, values, math.inf), mask, following,
        gamma=gamma, lam=lam, turn_gamma=turn_gamma, turn_lam=turn_lam, bootstrap_N=ends,
    )  # fmt: skip
    assert (found[~mask] == 0).all()
    for first in set(range(len(rewards))) - set(following.tolist()):
        chain = [first]
        while following[chain[-1]] >= 0:
            chain.append(int(following[chain[-1]]))
        parts = [[tensor[row][mask[row]].tolist() for row in chain] for tensor in (rewards, values, found)]
        expected = by_turns(parts[0], parts[1], float(ends[chain[-1]]), rates)
        for ours, theirs in zip(parts[2], expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(talk=conversations(), gamma=RATES, lam=RATES, turn_gamma=RATES)
def test_turns_alone_have_plain_gae_and_lambdas_of_1_give_the_return(
    talk: Any, gamma: float, lam: float, turn_gamma: float
) -> None:
    rewards, values, mask, following, ends = talk
    alone = torch.full_like(following, -1)
    after = ends.nan_to_num(0.5)
    rates: dict[str, Any] = {"turn_gamma": turn_gamma, "turn_lam": 1.0}
    found = turn_gae(rewards, values, mask, alone, gamma=gamma, lam=lam, **rates, bootstrap_N=after)
    torch.testing.assert_close(found, gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_N=after))
    # Returns token by token over the whole conversation, without any value.
    returns = torch.zeros_like(rewards)
    for row in reversed(range(len(rewards))):
        following_row, length = int(following[row]), int(mask[row].sum())
        ahead = gamma * ends[row] if following_row < 0 else turn_gamma * returns[following_row, 0]
        for t in reversed(range(length)):
            returns[row, t] = ahead = rewards[row, t] + ahead
            ahead = gamma * ahead
    found = turn_gae(rewards, values, mask, following, gamma=gamma, lam=1.0, **rates, bootstrap_N=ends)
    torch.testing.assert_close(found, torch.where(mask, returns - values, 0))


@settings(max_examples=50, deadline=None)
@given(episode=episodes(), garbage=st.sampled_from([math.nan, math.inf, -1e30]))
def test_masked_values_do_not_matter(episode: Any, garbage: float) -> None:
    rewards, values, mask, bootstrap_values = episode

    def results(rewards: Tensor, values: Tensor) -> list[Tensor]:
        learned = values.clone().requires_grad_()
        loss = value_loss(learned, rewards, values * 0.5, mask, value_epsilon=0.1).loss_NT
        loss.sum().backward()
        assert learned.grad is not None
        return [
            gae(rewards, values, mask, gamma=0.9, lam=0.8, bootstrap_N=bootstrap_values),
            token_rewards(bootstrap_values, rewards, mask, 0.3),
            whiten(values, mask),
            loss.detach(),
            learned.grad,
        ]

    clean = results(rewards, values)
    dirty = results(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage))
    for value, expected in zip(dirty, clean, strict=True):
        torch.testing.assert_close(value, expected, atol=0, rtol=0)


def test_the_score_is_on_the_last_token_and_the_penalty_on_every_token() -> None:
    kl = torch.tensor([[0.1, -0.2, 0.3], [0.5, 7.0, 7.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    found = token_rewards(torch.tensor([1.0, 0.5, 3.0]), kl, mask, beta=0.5)
    # By hand: -0.5 * kl, and the score added to the last unmasked token.
    torch.testing.assert_close(found, torch.tensor([[-0.05, 0.1, 0.85], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]))


@settings(max_examples=50, deadline=None)
@given(episode=episodes())
def test_whitened_values_have_mean_0_and_std_1(episode: Any) -> None:
    _, values, mask, _ = episode
    white = whiten(values, mask)
    assert (white[~mask] == 0).all()
    if mask.sum() > 2:
        assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
        assert white[mask].std().item() == pytest.approx(1, abs=1e-5)
    mean, std = torch.tensor(2.0), torch.tensor(4.0)
    torch.testing.assert_close(whiten(values, mask, mean=mean, std=std)[mask], (values[mask] - 2) / 4)


def test_the_clip_of_the_value_loss_by_hand() -> None:
    values = torch.tensor([[0.9, 0.1, 0.9, 0.5]], requires_grad=True)
    old, returns = torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([[1.0, 1.0, 0.0, 0.6]])
    terms = value_loss(values, old, returns, torch.ones(1, 4, dtype=torch.bool), value_epsilon=0.2)
    # By hand: 0.9 is clipped to 0.7, which is worse: gradient 0. Away from the target the unclipped loss is larger.
    torch.testing.assert_close(terms.loss_NT, 0.5 * torch.tensor([[0.09, 0.81, 0.81, 0.01]]))
    assert terms.clipped_NT.tolist() == [[True, False, False, False]]
    terms.loss_NT.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.9, 0.9, -0.1]]))
    plain = value_loss(values, old, returns, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(plain.loss_NT, 0.5 * (values - returns).square())
    assert not plain.clipped_NT.any()


def test_explained_variance_by_hand() -> None:
    # Of the returns 0, 1, 2 the std is 1; that of the errors of values that are their opposites, 2.
    assert explained_variance(0.0, 1.0) == 1
    assert explained_variance(1.0, 1.0) == 0, "the values predict the mean"
    assert explained_variance(2.0, 1.0) == -3
    assert explained_variance(1.0, 0.0) == 0, "nothing to explain"
    assert explained_variance(1.0, 2e-7) == 0, "nor in rounding"


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 0.2), (6.6, 0.2 * (1 + 0.1 * 0.1)), (60.0, 0.2 * (1 + 0.2 * 0.1)), (0.0, 0.2 * 0.98)]
)
def test_the_coefficient_moves_toward_the_target_by_at_most_a_fifth(kl: float, expected: float) -> None:
    # By hand, with a target of 6, 100 completions and a horizon of 1000.
    assert adapted_kl_coef(0.2, kl, target=6.0, horizon=1000.0, samples=100) == pytest.approx(expected)


def test_masks_and_shapes_are_checked() -> None:
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="same shape"):
        gae(zeros, zeros[:, :2], mask, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="must be boolean"):
        value_loss(zeros, zeros, zeros, zeros)
