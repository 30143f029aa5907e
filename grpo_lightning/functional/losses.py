"""Policy objectives per token, and their aggregation into the loss of an optimizer step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_choice
from grpo_lightning.functional.masking import masked_mean, masked_sum

Aggregation = Literal["grpo", "dr_grpo", "bnpo", "dapo"]
BinaryDivergence = Literal["tv", "kl"]

# exp(20) is 5e8: far beyond every clip, yet finite in float32, where exp(89) overflows.
MAX_LOG_RATIO = 20.0


def token_ratio(logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """``logprobs_NT``, ``old_logprobs_NT``, ``mask_NT`` -> each token's ratio ``[N, T]``, 1 at masked positions.

    ``rho_it = pi(y_it) / pi_old(y_it)``. PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300.

    Beyond the papers: the logarithm is clamped at ``MAX_LOG_RATIO`` before the exponential.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT - old_logprobs_NT, 0)
    return log_ratio_NT.clamp(max=MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """``logprobs_NT``, ``old_logprobs_NT``, ``mask_NT`` -> each sequence's ratio ``[N, T]``, 1 at masked positions.

    ``s_i = (pi(y_i) / pi_old(y_i))^(1/|y_i|) = exp( 1/|y_i| sum_t log rho_it )``, the same at every token of the
    sequence. GSPO, arXiv 2507.18071, eq. 7. :func:`sequence_token_ratio` is its token-level form.

    Beyond the paper: the logarithm is clamped at ``MAX_LOG_RATIO`` before the exponential.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT - old_logprobs_NT, 0)
    mean_N1 = masked_mean(log_ratio_NT, mask_NT, dim=1).unsqueeze(1)
    return torch.where(mask_NT, mean_N1, 0).clamp(max=MAX_LOG_RATIO).exp()


def sequence_token_ratio(logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """``logprobs_NT``, ``old_logprobs_NT``, ``mask_NT`` -> each token's ratio ``[N, T]``, 1 at masked positions.

    ``s_it = sg(s_i) pi(y_it) / sg(pi(y_it))``, with ``sg`` the stop-gradient: the value of :func:`sequence_ratio`, and
    the gradient of the token's own log-prob times it. GSPO-token, arXiv 2507.18071, eq. 14.
    """
    own_NT = torch.where(mask_NT, logprobs_NT - logprobs_NT.detach(), 0).exp()  # 1, with a gradient
    return sequence_ratio(logprobs_NT, old_logprobs_NT, mask_NT).detach() * own_NT


def clipped_objective(
    ratio_NT: Tensor, advantages_NT: Tensor, epsilon: float, epsilon_high: float, delta: float | None
) -> tuple[Tensor, Tensor]:
    """``ratio_NT``, ``advantages_NT`` -> the objective to maximise ``[N, T]``, and bool ``[N, T]``: gradient clipped.

    ``J = min( rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A )``. PPO, arXiv 1707.06347, eq. 7, which has one
    epsilon; clip-higher, with two: DAPO, arXiv 2503.14476, eq. 10.

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
    """``logprobs_NT``, ``ratio_NT``, ``advantages_NT`` -> the objective to maximise ``[N, T]``, and bool: capped.

    ``J = sg( min(rho, cap) ) A log pi``, with ``sg`` the stop-gradient: every token keeps its gradient, and only its
    weight is bounded. CISPO, arXiv 2506.13585, whose upper bound ``1 + epsilon_high`` is ``cap`` here, as in
    ScaleRL (arXiv 2510.13786). Not implemented: its lower bound, which the authors did not use either.
    """
    weight_NT = ratio_NT.detach().clamp(max=cap)
    return weight_NT * advantages_NT * logprobs_NT, (ratio_NT > cap) & (advantages_NT != 0)


def soft_gated_objective(ratio_NT: Tensor, advantages_NT: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    """``ratio_NT``, ``advantages_NT`` -> the objective to maximise ``[N, T]``.

    ``J = 4/tau sigmoid(tau (rho - 1)) A``, with ``tau = tau_pos`` for ``A > 0``, else ``tau_neg``. The weight of
    ``grad log pi`` is ``4 p (1 - p) rho A`` with ``p = sigmoid(tau (rho - 1))``: that of REINFORCE at ``rho = 1``, and
    fading on both sides. SAPO, arXiv 2511.20347.
    """
    tau_NT = torch.where(advantages_NT > 0, tau_pos, tau_neg).to(ratio_NT.dtype)
    return 4 / tau_NT * torch.sigmoid(tau_NT * (ratio_NT - 1)) * advantages_NT


def geometric_mean_objective(
    logprobs_NT: Tensor,
    old_logprobs_NT: Tensor,
    advantages_NT: Tensor,
    mask_NT: Tensor,
    epsilon: float,
    epsilon_high: float,
) -> tuple[Tensor, Tensor]:
    """Log-probs, advantages and mask -> the objective to maximise ``[N, T]``, and bool ``[N, T]``: gradient clipped.

    ``J_i = ( prod_t c(rho_it) )^(1/|y_i|) A_i``, the same at every token of the sequence, with the ratio clipped on the
    side that the advantage moves it to: ``c(rho) = min(rho, e^epsilon_high)`` for ``A > 0``, ``max(rho, e^-epsilon)``
    for ``A < 0``. GMPO, arXiv 2507.20673.

    Beyond the paper: where advantages differ within a sequence, each token takes the geometric mean that is clipped for
    the sign of its own; and the logarithm of the mean is clamped at ``MAX_LOG_RATIO`` before the exponential.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT - old_logprobs_NT, 0)

    def geometric_mean(clipped_NT: Tensor) -> Tensor:
        return masked_mean(clipped_NT, mask_NT, dim=1).clamp(max=MAX_LOG_RATIO).exp().unsqueeze(1)

    raised_N1 = geometric_mean(log_ratio_NT.clamp(max=epsilon_high))
    lowered_N1 = geometric_mean(log_ratio_NT.clamp(min=-epsilon))
    cut_above_NT = (advantages_NT > 0) & (log_ratio_NT > epsilon_high)
    cut_below_NT = (advantages_NT < 0) & (log_ratio_NT < -epsilon)
    return torch.where(advantages_NT > 0, raised_N1, lowered_N1) * advantages_NT, cut_above_NT | cut_below_NT


def binary_divergence(logprobs_NT: Tensor, old_logprobs_NT: Tensor, divergence: BinaryDivergence) -> Tensor:
    """``logprobs_NT``, ``old_logprobs_NT`` -> how far the policy has moved at each token ``[N, T]``, without gradient.

    The divergence of two coins, whether the sampled token is drawn or another one, with ``p = pi(y_it)`` and
    ``q = pi_old(y_it)``: a lower bound of that of the whole distributions. DPPO, arXiv 2602.04879.

    - ``tv``: ``|q - p|``, eq. 13;
    - ``kl``: ``q log(q / p) + (1 - q) log((1 - q) / (1 - p))``, eq. 14, in nats.

    Beyond the paper: ``1 - p`` and ``1 - q`` are at least 1e-8 in the logarithm, as in the authors' code.
    """
    check_choice("divergence", divergence, BinaryDivergence)
    dtype = torch.promote_types(logprobs_NT.dtype, torch.float32)
    logprobs_NT, old_logprobs_NT = logprobs_NT.detach().to(dtype), old_logprobs_NT.detach().to(dtype)
    other_NT, old_other_NT = -torch.expm1(logprobs_NT), -torch.expm1(old_logprobs_NT)
    if divergence == "tv":
        return (old_other_NT - other_NT).abs()
    log_other_NT, log_old_other_NT = other_NT.clamp(min=1e-8).log(), old_other_NT.clamp(min=1e-8).log()
    return (1 - old_other_NT) * (old_logprobs_NT - logprobs_NT) + old_other_NT * (log_old_other_NT - log_other_NT)


def divergence_masked_objective(
    ratio_NT: Tensor, advantages_NT: Tensor, divergence_NT: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """``ratio_NT``, ``advantages_NT``, ``divergence_NT`` -> the objective to maximise ``[N, T]``, and bool: masked.

    ``J = M rho A``, with ``M = 0`` where the divergence is above the threshold and the step would raise it further
    (``A > 0`` and ``rho > 1``, or ``A < 0`` and ``rho < 1``), else 1. DPPO, arXiv 2602.04879, eq. 11 and 12.
    """
    leaving_NT = ((advantages_NT > 0) & (ratio_NT > 1)) | ((advantages_NT < 0) & (ratio_NT < 1))
    masked_NT = leaving_NT & (divergence_NT > threshold)
    return torch.where(masked_NT, 0, ratio_NT * advantages_NT), masked_NT


def shaped_objective(logprobs_NT: Tensor, advantages_NT: Tensor, shaping: float = 0.1) -> Tensor:
    """``logprobs_NT``, ``advantages_NT`` -> the objective to maximise ``[N, T]``, for tokens of another policy.

    ``J = A * p / (p + shaping)`` with ``p = pi(y_it)``: no ratio to the policy that sampled, and a derivative with
    respect to ``p`` that grows as ``p`` falls. LUFFY, arXiv 2504.14945, eq. 7; Critique-GRPO, arXiv 2506.03106.
    """
    probs_NT = logprobs_NT.exp()
    return advantages_NT * probs_NT / (probs_NT + shaping)


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
    - ``dr_grpo``: ``1/(sequences * max_tokens) sum_i sum_t loss_it``, a constant instead of the length. Dr. GRPO,
      arXiv 2503.20783: its listing divides by the generation budget, its equation omits the constant.
    - ``dapo``: ``1/tokens sum_i sum_t loss_it``, with ``tokens`` counted over all ranks. DAPO, arXiv 2503.14476, eq. 8.
    - ``bnpo``: the same equation, with ``tokens`` counted on the local rank, so that all ranks have equal weight. The
      name is TRL's.

    ``sequences`` and ``tokens`` are counts over the whole optimizer step, across its micro-batches: the shares of any
    split of the rows add up to the loss of the step. Both are positive; ``sequences`` includes sequences without
    unmasked tokens. ``max_tokens`` is the generation budget of a completion, used by ``dr_grpo`` only.
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
