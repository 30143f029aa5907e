"""Policy objectives per token, and their aggregation into the loss of an optimizer step."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_choice, check_mask, check_same_shape
from grpo_lightning.functional.kl import KLEstimator, kl_divergence
from grpo_lightning.functional.masking import masked_mean, masked_sum

RatioLevel = Literal["token", "sequence"]
Objective = Literal["clip", "cispo", "shaped"]
Aggregation = Literal["grpo", "dr_grpo", "bnpo", "dapo"]

# exp(20) is 5e8: far beyond every clip, yet its gradient is finite in float32, where that of exp(89) is not.
MAX_LOG_RATIO = 20.0


class PolicyLossTerms(NamedTuple):
    """The objective, token by token; only ``loss_NT`` carries gradients.

    Args:
        loss_NT: what is to be minimised; 0 at masked positions.
        ratio_NT: the importance ratio, before any clip; 1 at masked positions.
        clipped_NT: True where the clip cut the gradient (for CISPO: where it cut the weight of the gradient).
        kl_NT: the estimate of ``KL(pi || pi_ref)``, not multiplied by beta; 0 at masked positions or without reference.
    """

    loss_NT: Tensor
    ratio_NT: Tensor
    clipped_NT: Tensor
    kl_NT: Tensor


def importance_ratio(logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor, level: RatioLevel) -> Tensor:
    """``logprobs_NT``, ``old_logprobs_NT``, ``mask_NT`` -> ratio ``[N, T]``, 1 at masked positions.

    - ``token``: ``rho_it = pi(y_it) / pi_old(y_it)``. PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300.
    - ``sequence``: ``s_i = (pi(y_i) / pi_old(y_i))^(1/|y_i|) = exp( 1/|y_i| sum_t log rho_it )``, the same at every
      token of the sequence. GSPO, arXiv 2507.18071, eq. 7. Left out: GSPO-token (eq. 14), whose gradient differs only
      where advantages differ within a sequence.

    Beyond the papers: the logarithm is cut at ``MAX_LOG_RATIO`` before the exponential.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT - old_logprobs_NT, 0)
    if level == "sequence":
        mean_N1 = masked_mean(log_ratio_NT, mask_NT, dim=1).unsqueeze(1)
        log_ratio_NT = torch.where(mask_NT, mean_N1, 0)
    return log_ratio_NT.clamp(max=MAX_LOG_RATIO).exp()


def clipped_objective(
    ratio_NT: Tensor, advantages_NT: Tensor, epsilon: float, epsilon_high: float, delta: float | None
) -> tuple[Tensor, Tensor]:
    """``ratio_NT``, ``advantages_NT`` -> the objective to be maximised ``[N, T]``, and bool ``[N, T]``: gradient cut.

    ``J = min( rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A )``. PPO, arXiv 1707.06347, eq. 7, where both epsilons
    are one; apart, clip-higher: DAPO, arXiv 2503.14476, eq. 10.

    With ``delta``: ``J = min( min(rho, delta) A, clip(rho, ...) A )``. INTELLECT-2, arXiv 2505.07291
    ("two-sided GRPO clipping"). As ``delta > 1 + epsilon_high``, it binds for negative advantages only and equals
    ``max( min(rho A, clip(rho, ...) A), delta A )`` there: dual-clip PPO, arXiv 1912.09729, with ``c = delta``.
    """
    capped_NT = ratio_NT if delta is None else ratio_NT.clamp(max=delta)
    clipped_NT = ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)
    objective_NT = torch.minimum(capped_NT * advantages_NT, clipped_NT * advantages_NT)
    cut_above_NT = (advantages_NT > 0) & (ratio_NT > 1 + epsilon_high)
    cut_below_NT = (advantages_NT < 0) & (
        (ratio_NT < 1 - epsilon) | (ratio_NT > (math.inf if delta is None else delta))
    )
    return objective_NT, cut_above_NT | cut_below_NT


def cispo_objective(logprobs_NT: Tensor, ratio_NT: Tensor, advantages_NT: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """``logprobs_NT``, ``ratio_NT``, ``advantages_NT`` -> the objective to be maximised ``[N, T]``, and bool: capped.

    ``J = sg( min(rho, cap) ) A log pi``, with ``sg`` the stop-gradient: no token loses its gradient, only its weight is
    bounded. CISPO, arXiv 2506.13585, whose upper bound ``1 + epsilon_high`` is ``cap`` here, the form of
    ScaleRL (arXiv 2510.13786). Left out: its lower bound, which the authors did not use either.
    """
    weight_NT = ratio_NT.detach().clamp(max=cap)
    return weight_NT * advantages_NT * logprobs_NT, (ratio_NT > cap) & (advantages_NT != 0)


def shaped_objective(logprobs_NT: Tensor, advantages_NT: Tensor, shaping: float) -> Tensor:
    """``logprobs_NT``, ``advantages_NT`` -> the objective to be maximised ``[N, T]``, for tokens of another policy.

    ``J = A * p / (p + shaping)`` with ``p = pi(y_it)``: no ratio to the policy that sampled, and a gradient that is the
    larger the less probable the token is. LUFFY, arXiv 2504.14945, eq. 7; Critique-GRPO, arXiv 2506.03106.
    """
    probs_NT = logprobs_NT.exp()
    return advantages_NT * probs_NT / (probs_NT + shaping)


def policy_loss(
    logprobs_NT: Tensor,
    old_logprobs_NT: Tensor | None,
    advantages_N: Tensor,
    mask_NT: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    ratio_level: RatioLevel = "token",
    objective: Objective = "clip",
    cispo_epsilon_high: float = 5.0,
    shaping: float = 0.1,
    ref_logprobs_NT: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> PolicyLossTerms:
    """``logprobs_NT``, ``old_logprobs_NT``, ``advantages_N`` (or ``[N, T]``), ``mask_NT`` -> :class:`PolicyLossTerms`.

    ``loss_it = -J_it + beta * KL_it``, the summand of GRPO, arXiv 2402.03300, eq. 3, with

    - ``J`` of :func:`clipped_objective` (``clip``), :func:`cispo_objective` (``cispo``, which has its own cap and
      uses none of the epsilons), or :func:`shaped_objective` (``shaped``, which uses no ratio),
    - the ratio in it of :func:`importance_ratio`, per token or (GSPO) per sequence,
    - ``KL_it`` of :func:`kl_divergence`.

    :func:`aggregate` turns the tokens into a loss.

    Args:
        old_logprobs_NT: those of the policy that sampled. ``None`` says that it is the present one: the ratio is then
            exactly 1, and the gradient exactly ``A * grad log pi``.
        advantages_N: one a sequence, or one a token (PPO); taken as constants.
        mask_NT: True where a completion token counts. What stands elsewhere changes neither loss nor gradient.
        epsilon_high: the upper clip, ``None`` for ``epsilon``.
        shaping: the constant of ``shaped``.
        delta: the cap of the ratio for negative advantages, ``None`` for no cap.
        ref_logprobs_NT: those of the reference. With ``beta = 0`` they only give ``kl_NT``.

    Left out of the paper: the importance weight of the KL term when the tokens come from an older policy.
    """
    check_choice("ratio_level", ratio_level, RatioLevel)
    check_choice("objective", objective, Objective)
    check_mask(mask_NT)
    check_same_shape(
        logprobs_NT=logprobs_NT, old_logprobs_NT=old_logprobs_NT, mask_NT=mask_NT, ref_logprobs_NT=ref_logprobs_NT
    )
    if logprobs_NT.dim() != 2:
        raise ValueError(f"logprobs_NT must have two dimensions, but is {tuple(logprobs_NT.shape)}.")
    if advantages_N.shape not in (logprobs_NT.shape, logprobs_NT.shape[:1]):
        raise ValueError(
            f"advantages_N must be [N] or [N, T] for logprobs of shape {tuple(logprobs_NT.shape)}, "
            f"but is {tuple(advantages_N.shape)}."
        )
    high = epsilon if epsilon_high is None else epsilon_high
    if epsilon < 0 or high < 0:
        raise ValueError(f"epsilon and epsilon_high must not be negative, but are {epsilon} and {epsilon_high}.")
    if delta is not None and objective != "clip":
        raise ValueError(f"delta belongs to objective='clip', but the objective is {objective!r}.")
    if delta is not None and delta <= 1 + high:
        raise ValueError(f"delta must be above 1 + epsilon_high = {1 + high:g}, the clip that it caps, but is {delta}.")
    if cispo_epsilon_high <= 0:
        raise ValueError(f"cispo_epsilon_high must be positive, but is {cispo_epsilon_high}.")
    if shaping <= 0:
        raise ValueError(f"shaping must be positive, but is {shaping}.")
    if beta < 0:
        raise ValueError(f"beta must not be negative, but is {beta}.")
    if beta > 0 and ref_logprobs_NT is None:
        raise ValueError(f"beta is {beta}, but ref_logprobs_NT is not given.")

    logprobs_NT = torch.where(mask_NT, logprobs_NT, 0)
    old_NT = logprobs_NT.detach() if old_logprobs_NT is None else old_logprobs_NT
    advantages_NT = advantages_N.unsqueeze(1) if advantages_N.dim() == 1 else advantages_N
    advantages_NT = torch.where(mask_NT, advantages_NT.detach(), 0)

    ratio_NT = importance_ratio(logprobs_NT, old_NT, mask_NT, ratio_level)
    if objective == "clip":
        objective_NT, clipped_NT = clipped_objective(ratio_NT, advantages_NT, epsilon, high, delta)
    elif objective == "shaped":
        objective_NT, clipped_NT = shaped_objective(logprobs_NT, advantages_NT, shaping), torch.zeros_like(mask_NT)
    else:
        objective_NT, clipped_NT = cispo_objective(logprobs_NT, ratio_NT, advantages_NT, cispo_epsilon_high)
    loss_NT = -objective_NT

    if ref_logprobs_NT is None:
        kl_NT = torch.zeros_like(loss_NT)
    else:
        kl_NT = kl_divergence(logprobs_NT, ref_logprobs_NT, kl_estimator, mask_NT)
        if beta > 0:
            loss_NT = loss_NT + beta * kl_NT
    return PolicyLossTerms(loss_NT, ratio_NT.detach(), clipped_NT, kl_NT.detach())


def aggregate(
    loss_NT: Tensor,
    mask_NT: Tensor,
    *,
    aggregation: Aggregation,
    sequences: float | Tensor,
    tokens: float | Tensor,
    max_tokens: int,
) -> Tensor:
    """``loss_NT``, ``mask_NT`` of one micro-batch -> its share of the loss of the optimizer step, a scalar.

    - ``grpo``: ``1/sequences sum_i 1/|y_i| sum_t loss_it``. DeepSeekMath, arXiv 2402.03300, eq. 3.
    - ``dr_grpo``: ``1/(sequences * max_tokens) sum_i sum_t loss_it``, a constant in place of the length. Dr. GRPO,
      arXiv 2503.20783: its listing divides by the generation budget, its equation leaves the constant out.
    - ``dapo``: ``1/tokens sum_i sum_t loss_it``, with ``tokens`` counted over all ranks. DAPO, arXiv 2503.14476, eq. 8.
    - ``bnpo``: the same equation, with ``tokens`` counted over the caller's own rank, so that each rank weighs the
      same. The name is TRL's.

    ``sequences`` and ``tokens`` are counts of the whole optimizer step, over all its micro-batches: the shares of any
    split of the rows add up to the loss of the whole. They are positive; ``sequences`` includes those without a
    token that counts. ``max_tokens`` is the generation budget of a completion, used by ``dr_grpo`` alone.
    """
    check_choice("aggregation", aggregation, Aggregation)
    for name, count in (("sequences", sequences), ("tokens", tokens), ("max_tokens", max_tokens)):
        if not isinstance(count, Tensor) and count <= 0:
            raise ValueError(f"{name} must be positive, but is {count}.")
    if aggregation == "grpo":
        return masked_mean(loss_NT, mask_NT, dim=1).sum() / sequences
    if aggregation == "dr_grpo":
        return masked_sum(loss_NT, mask_NT) / (sequences * max_tokens)
    return masked_sum(loss_NT, mask_NT) / tokens
