"""Token-level values: rewards of single tokens, generalised advantages, and what a critic learns from them.

A completion of ``T`` tokens is an episode of ``T`` steps, which ends behind the last one. State ``t`` is the text
before token ``t``, and ``values_NT[:, t]`` the critic's guess of the rewards from there on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_mask, check_same_shape
from grpo_lightning.functional.masking import masked_mean, masked_std


class ValueLossTerms(NamedTuple):
    """The critic's loss, token by token; only ``loss_NT`` carries gradients.

    Args:
        loss_NT: what is to be minimised; 0 at masked positions.
        clipped_NT: True where the clip cut the gradient.
    """

    loss_NT: Tensor
    clipped_NT: Tensor


def token_rewards(scores_N: Tensor, kl_NT: Tensor, mask_NT: Tensor, beta: float) -> Tensor:
    """``scores_N``, ``kl_NT``, ``mask_NT`` -> rewards ``[N, T]``, 0 at masked positions.

    ``r_t = -beta * kl_t + [t is the last token] * score``: the verifier judges the whole, the penalty each token.
    Ziegler et al. 2019, arXiv 1909.08593, eq. 2, whose ``log(pi / rho)`` is the k1 estimate of the KL.
    """
    check_mask(mask_NT)
    check_same_shape(kl_NT=kl_NT, mask_NT=mask_NT)
    # Tokens that count from here to the end of the row: 1 on the last of them.
    left_NT = mask_NT.flip(1).cumsum(1).flip(1)
    rewards_NT = torch.where(mask_NT, -beta * kl_NT, 0)
    return torch.where(mask_NT & (left_NT == 1), rewards_NT + scores_N.unsqueeze(1), rewards_NT)


def gae(
    rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_N: Tensor | None = None,
) -> Tensor:
    """``rewards_NT``, ``values_NT``, ``mask_NT`` -> advantages ``[N, T]``, 0 at masked positions.

    ``A_t = sum_l (gamma * lam)^l delta_{t+l}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``. Schulman et al. 2015,
    arXiv 1506.02438, eq. 16. The sum ends with the row, behind whose last token the value is ``bootstrap_N``: 0, left
    out, for an episode that ended there. Masked positions are passed over, whatever stands there.
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


def whiten(
    values: Tensor, mask: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None, eps: float = 1e-8
) -> Tensor:
    """``values``, ``mask`` of one shape -> that shape with mean 0 and std 1 over the mask, 0 elsewhere.

    ``(values - mean) / (std + eps)``, with the (Bessel-corrected) std. A detail of PPO2 and of Ziegler et al. 2019,
    arXiv 1909.08593, that the papers do not spell out. Under data parallelism the moments are those of the values
    given, unless ``mean`` and ``std`` bring the ones of all ranks.
    """
    mean = masked_mean(values, mask) if mean is None else mean
    std = masked_std(values, mask) if std is None else std
    return torch.where(mask, (values - mean) / (std + eps), 0)


def value_loss(
    values_NT: Tensor,
    old_values_NT: Tensor,
    returns_NT: Tensor,
    mask_NT: Tensor,
    *,
    value_epsilon: float | None = None,
) -> ValueLossTerms:
    """``values_NT``, ``old_values_NT``, ``returns_NT``, ``mask_NT`` -> :class:`ValueLossTerms`.

    ``1/2 max( (V - R)^2, (clip(V, V_old - value_epsilon, V_old + value_epsilon) - R)^2 )``: a step of the critic ends
    where it has moved by ``value_epsilon``. PPO2 (openai/baselines) and Ziegler et al. 2019 (their
    ``lm_human_preferences/train_policy.py``); not in the PPO paper. ``None`` leaves the clip out.
    """
    check_mask(mask_NT)
    check_same_shape(values_NT=values_NT, old_values_NT=old_values_NT, returns_NT=returns_NT, mask_NT=mask_NT)
    values_NT = torch.where(mask_NT, values_NT, 0)
    returns_NT = torch.where(mask_NT, returns_NT, 0).detach()
    loss_NT = (values_NT - returns_NT).square()
    clipped_NT = torch.zeros_like(mask_NT)
    if value_epsilon is not None:
        old_NT = torch.where(mask_NT, old_values_NT, 0).detach()
        near_NT = old_NT + (values_NT - old_NT).clamp(-value_epsilon, value_epsilon)
        near_loss_NT = (near_NT - returns_NT).square()
        clipped_NT = ((values_NT - old_NT).abs() > value_epsilon) & (near_loss_NT > loss_NT)
        loss_NT = torch.maximum(loss_NT, near_loss_NT)
    return ValueLossTerms(0.5 * loss_NT, clipped_NT)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """``values``, ``returns``, ``mask`` of one shape -> a scalar.

    ``1 - Var(returns - values) / Var(returns)``: 1 for a perfect critic, 0 for one that knows no more than the mean,
    below 0 for one that is worse. 0 where the returns do not vary, rounding (a std of 1e-5) aside.
    """
    total = masked_std(returns, mask).square()
    left = masked_std(returns - values, mask).square()
    varies = total > 1e-10
    return torch.where(varies, 1 - left / torch.where(varies, total, 1), 0)


def adapted_kl_coef(coef: float, kl: float, *, target: float, horizon: float, samples: float) -> float:
    """The coefficient of the KL penalty after ``samples`` completions with a mean KL of ``kl`` (nats a completion).

    ``coef * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon)``. Ziegler et al. 2019, arXiv 1909.08593,
    section 2.2, where ``samples / horizon`` is ``K = 0.1``; written out so in their ``AdaptiveKLController``.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * samples / horizon)
