"""Importance weights for tokens that another distribution than the policy's drew, ``mu`` instead of ``pi``."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.functional.losses import MAX_LOG_RATIO, token_ratio


def truncated_weights(
    logprobs_NT: Tensor, sampler_logprobs_NT: Tensor, mask_NT: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """``logprobs_NT``, ``sampler_logprobs_NT``, ``mask_NT`` -> weights ``[N, T]``, and bool ``[N, T]``: capped.

    ``w_it = min( pi(y_it) / mu(y_it), cap )``: truncated importance sampling, by token. Yao, Liu et al., "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training", https://fengyao.notion.site/off-policy-rl;
    Ionides, "Truncated Importance Sampling", J. Comput. Graph. Stat. 17(2), 2008. The cap bounds the variance, at the
    cost of a bias. Masked positions have weight 1.
    """
    ratio_NT = token_ratio(logprobs_NT.detach(), sampler_logprobs_NT, mask_NT)
    return ratio_NT.clamp(max=cap), ratio_NT > cap


def masked_sequence_weights(
    logprobs_NT: Tensor, sampler_logprobs_NT: Tensor, mask_NT: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """``logprobs_NT``, ``sampler_logprobs_NT``, ``mask_NT`` -> weights ``[N, T]``, and bool ``[N, T]``: masked out.

    ``w_i = rho_i 1[rho_i <= cap]`` with ``rho_i = prod_t pi(y_it) / mu(y_it)``, the same at every token of a sequence:
    masked importance sampling, by sequence. Liu, Li et al., "When Speed Kills Stability: Demystifying RL Collapse from
    the Training-Inference Mismatch", https://yingru.notion.site/271211a558b7808d8b12d403fd15edda. The ratio is that of
    the whole sequence, whose logarithm grows with the root of its length. Masked positions have weight 1.

    Beyond the source: the logarithm is clamped at ``MAX_LOG_RATIO`` before the exponential.
    """
    log_ratio_NT = torch.where(mask_NT, logprobs_NT.detach() - sampler_logprobs_NT, 0)
    ratio_N1 = log_ratio_NT.sum(1, keepdim=True).clamp(max=MAX_LOG_RATIO).exp()
    masked_NT = (ratio_N1 > cap) & mask_NT
    return torch.where(mask_NT, torch.where(masked_NT, 0, ratio_N1), 1), masked_NT
