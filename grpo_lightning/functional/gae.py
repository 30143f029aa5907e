"""Token-level values: per-token rewards, generalised advantage estimation, and the critic's loss.

A completion of ``T`` tokens is an episode of ``T`` steps, which ends after the last token. State ``t`` is the text
before token ``t``; ``values_NT[:, t]`` is the critic's estimate of the return from there on. Each turn of a
conversation is a row; what the environment says between turns has no steps and no values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_mask, check_same_shape
from grpo_lightning.functional.masking import masked_mean, masked_std


class ValueLossTerms(NamedTuple):
    """The critic's loss per token; only ``loss_NT`` carries gradients.

    Attributes:
        loss_NT: the loss to minimise; 0 at masked positions.
        clipped_NT: True where clipping removed the gradient.
    """

    loss_NT: Tensor
    clipped_NT: Tensor


def token_rewards(scores_N: Tensor, kl_NT: Tensor, mask_NT: Tensor, beta: float) -> Tensor:
    """``scores_N``, ``kl_NT``, ``mask_NT`` -> rewards ``[N, T]``, 0 at masked positions.

    ``r_t = -beta * kl_t + [t is the last token] * score``: the score is per completion, the penalty per token.
    Ziegler et al. 2019, arXiv 1909.08593, eq. 2, whose ``log(pi / rho)`` is the k1 estimate of the KL.
    """
    check_mask(mask_NT)
    check_same_shape(kl_NT=kl_NT, mask_NT=mask_NT)
    # Unmasked tokens from here to the end of the row: 1 at the last one.
    remaining_NT = mask_NT.flip(1).cumsum(1).flip(1)
    rewards_NT = torch.where(mask_NT, -beta * kl_NT, 0)
    return torch.where(mask_NT & (remaining_NT == 1), rewards_NT + scores_N.unsqueeze(1), rewards_NT)


def gae(
    rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    bootstrap_N: Tensor | None = None,
) -> Tensor:
    """``rewards_NT``, ``values_NT``, ``mask_NT`` -> advantages ``[N, T]``, 0 at masked positions.

    ``A_t = sum_l (gamma * lam)^l delta_{t+l}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``. Schulman et al. 2015,
    arXiv 1506.02438, eq. 16. ``lam`` is one number, or ``[N]``, one per row. The sum ends with the row; the value after
    its last token is ``bootstrap_N`` (default: 0, for an episode that ended there). Masked positions are skipped,
    whatever they contain.
    """
    check_mask(mask_NT)
    check_same_shape(rewards_NT=rewards_NT, values_NT=values_NT, mask_NT=mask_NT)
    rewards_NT = torch.where(mask_NT, rewards_NT, 0)
    values_NT = torch.where(mask_NT, values_NT, 0)
    next_N = torch.zeros_like(values_NT[:, 0]) if bootstrap_N is None else bootstrap_N
    advantage_N = torch.zeros_like(next_N)
    advantages = []
    for t in reversed(range(mask_NT.shape[1])):
        delta_N = rewards_NT[:, t] + gamma * next_N - values_NT[:, t]
        advantage_N = torch.where(mask_NT[:, t], delta_N + gamma * lam * advantage_N, advantage_N)
        next_N = torch.where(mask_NT[:, t], values_NT[:, t], next_N)
        advantages.append(advantage_N)
    return torch.where(mask_NT, torch.stack(advantages[::-1], dim=1), 0)


def length_adaptive_lambda(lengths_N: Tensor, alpha: float) -> Tensor:
    """``lengths_N``, tokens per completion -> the lambda of each completion's advantages, ``[N]``.

    ``lambda = 1 - 1 / (alpha * length)``, so that the weights of the TD errors, ``sum_k lambda^k = 1 / (1 - lambda)``,
    add up to ``alpha * length``. VAPO, arXiv 2504.05118, section "Length-Adaptive GAE". At least 0, for completions of
    up to ``1 / alpha`` tokens, which the paper does not have.
    """
    return (1 - 1 / (alpha * lengths_N.clamp(min=1))).clamp(min=0)


def turn_gae(
    rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    next_N: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    turn_gamma: float,
    turn_lam: float,
    bootstrap_N: Tensor | None = None,
) -> Tensor:
    """``rewards_NT``, ``values_NT``, ``mask_NT``, ``next_N`` -> advantages ``[N, T]``, 0 at masked positions.

    GAE on two levels. Each row is a turn of ``L`` tokens; ``next_N`` is the row of the turn that follows it, -1 for
    the last of an episode, after which the value is ``bootstrap_N`` (default: 0). Turn ``k`` as a whole, with ``V_k``
    the value before its first token::

        A_k = delta_k + gamma^(L - 1) * turn_gamma * turn_lam * A_{k+1}
        delta_k = sum_t gamma^t r_{k,t} + gamma^(L - 1) * turn_gamma * V_{k+1} - V_k

    Its tokens have the advantages of :func:`gae`, and its last token is followed by the next turn as a whole,
    ``A_{k,L-1} = r_{k,L-1} + turn_gamma * (V_{k+1} + turn_lam * A_{k+1}) - V_{k,L-1}``: credit fades with the turns in
    between, not with their tokens. Bi-level GAE of VAGEN, arXiv 2510.16907, with the values before a turn as in its
    published code, where the paper takes those after it. Two differences: the rates at the end of a turn are those of
    turns, and a ``gamma`` below 1 discounts within a turn on both levels. So lambdas of 1 give return - value.
    """
    check_mask(mask_NT)
    check_same_shape(rewards_NT=rewards_NT, values_NT=values_NT, mask_NT=mask_NT)
    rewards_NT, values_NT = torch.where(mask_NT, rewards_NT, 0), torch.where(mask_NT, values_NT, 0)
    after_N = torch.zeros_like(values_NT[:, 0]) if bootstrap_N is None else bootstrap_N
    place_NT = mask_NT.cumsum(1)  # from 1 on
    value_N = torch.where(mask_NT & (place_NT == 1), values_NT, 0).sum(1)
    has_next_N, next_N = next_N >= 0, next_N.clamp(min=0)

    discounts_NT = gamma ** (place_NT - 1).clamp(min=0).to(values_NT.dtype)
    # Of what follows: that of the last token, times that of the turn, or of one more token where the episode ends.
    discount_N = torch.where(has_next_N, turn_gamma * discounts_NT[:, -1], gamma * discounts_NT[:, -1])
    following_N = torch.where(has_next_N, value_N[next_N], after_N)
    delta_N = (discounts_NT * rewards_NT).sum(1) + discount_N * following_N - value_N
    # Turn by turn from the end: after as many rounds as an episode has turns, every sum is complete.
    advantage_N, row_N, is_before_N = delta_N, next_N, has_next_N
    while is_before_N.any():
        advantage_N = delta_N + torch.where(has_next_N, discount_N * turn_lam * advantage_N[next_N], 0)
        is_before_N, row_N = is_before_N & has_next_N[row_N], next_N[row_N]

    followed_N = turn_gamma * (following_N + turn_lam * advantage_N[next_N])
    is_last_NT = mask_NT & (place_NT == place_NT[:, -1:])
    rewards_NT = rewards_NT + torch.where(is_last_NT & has_next_N[:, None], followed_N[:, None], 0)
    after_N = torch.where(has_next_N, 0, after_N)
    return gae(rewards_NT, values_NT, mask_NT, gamma=gamma, lam=lam, bootstrap_N=after_N)


def whiten(values: Tensor, mask: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """``values``, ``mask`` of one shape -> that shape with mean 0 and std 1 over the mask, 0 elsewhere.

    ``(values - mean) / (std + 1e-8)``, with the Bessel-corrected std. A detail of PPO2 and of Ziegler et al. 2019,
    arXiv 1909.08593, that the papers do not spell out. Under data parallelism the mean and std are those of the local
    ``values``; pass ``mean`` and ``std`` to use those of all ranks.
    """
    mean = masked_mean(values, mask) if mean is None else mean
    std = masked_std(values, mask) if std is None else std
    return torch.where(mask, (values - mean) / (std + 1e-8), 0)


def value_loss(
    values_NT: Tensor,
    old_values_NT: Tensor,
    returns_NT: Tensor,
    mask_NT: Tensor,
    *,
    value_epsilon: float | None = None,
) -> ValueLossTerms:
    """``values_NT``, ``old_values_NT``, ``returns_NT``, ``mask_NT`` -> :class:`ValueLossTerms`.

    ``1/2 max( (V - R)^2, (clip(V, V_old - value_epsilon, V_old + value_epsilon) - R)^2 )``: the gradient vanishes once
    the value has moved by ``value_epsilon`` towards the return. PPO2 (openai/baselines) and Ziegler et al. 2019 (their
    ``lm_human_preferences/train_policy.py``); not in the PPO paper. ``None`` disables clipping.
    """
    check_mask(mask_NT)
    check_same_shape(values_NT=values_NT, old_values_NT=old_values_NT, returns_NT=returns_NT, mask_NT=mask_NT)
    values_NT = torch.where(mask_NT, values_NT, 0)
    returns_NT = torch.where(mask_NT, returns_NT, 0).detach()
    loss_NT = (values_NT - returns_NT).square()
    clipped_NT = torch.zeros_like(mask_NT)
    if value_epsilon is not None:
        old_NT = torch.where(mask_NT, old_values_NT, 0).detach()
        clipped_values_NT = old_NT + (values_NT - old_NT).clamp(-value_epsilon, value_epsilon)
        clipped_loss_NT = (clipped_values_NT - returns_NT).square()
        clipped_NT = ((values_NT - old_NT).abs() > value_epsilon) & (clipped_loss_NT > loss_NT)
        loss_NT = torch.maximum(loss_NT, clipped_loss_NT)
    return ValueLossTerms(0.5 * loss_NT, clipped_NT)


def explained_variance(error_std: float, return_std: float) -> float:
    """``1 - Var(returns - values) / Var(returns)``, from the two standard deviations.

    1 for a perfect critic, 0 for one that predicts the mean, negative for a worse one. 0 if the returns do not vary; a
    std of up to 1e-5 is taken as rounding error.
    """
    return 1 - (error_std / return_std) ** 2 if return_std > 1e-5 else 0.0


def adapted_kl_coef(coef: float, kl: float, *, target: float, horizon: float, samples: float) -> float:
    """The coefficient of the KL penalty after ``samples`` completions with a mean KL of ``kl`` (nats per completion).

    ``coef * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon)``. Ziegler et al. 2019, arXiv 1909.08593,
    section 2.2, where ``samples / horizon`` is ``K = 0.1``; this form is that of their ``AdaptiveKLController``.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * samples / horizon)
