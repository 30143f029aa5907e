"""Group-relative advantages.

``rewards_BG`` holds the rewards of ``G`` completions for each of ``B`` prompts. NaN marks a missing reward (the
verifier failed, or a smaller group is padded): it is excluded from every statistic, and its advantage is 0. The papers
leave two more cases undefined. A group whose rewards are all equal gets exact zeros; the test is on equality, because
the float mean of eight times 0.1 is not 0.1. A group with fewer than two rewards gets zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.functional.masking import masked_max, masked_mean, masked_std, masked_sum


def unscaled_advantages(rewards_BG: Tensor) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = r_i - mean of the group``. Dr. GRPO, arXiv 2503.20783.
    """
    return _where_varied(rewards_BG, _centred(rewards_BG))


def group_std_advantages(rewards_BG: Tensor, eps: float) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = (r_i - mean) / (std + eps)``, with the mean and the Bessel-corrected std of the group. DeepSeekMath,
    arXiv 2402.03300, section 4.1.2, which has no ``eps``.
    """
    std_B1 = masked_std(rewards_BG, ~rewards_BG.isnan(), dim=1).unsqueeze(1)
    return _where_varied(rewards_BG, _centred(rewards_BG) / (std_B1 + eps))


def batch_std_advantages(rewards_BG: Tensor, std: Tensor, eps: float) -> Tensor:
    """``rewards_BG``, the ``std`` of all rewards of the batch -> advantages ``[B, G]``.

    ``A_i = (r_i - mean of the group) / (std + eps)``. Lite PPO, arXiv 2508.08221. (REINFORCE++, arXiv 2501.03262, takes
    the std of the advantages instead; not implemented.)
    """
    return _where_varied(rewards_BG, _centred(rewards_BG) / (std + eps))


def leave_one_out_advantages(rewards_BG: Tensor) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``.

    ``A_i = r_i - mean of the other G - 1``. RLOO, arXiv 2402.14740; equals ``G / (G - 1) * (r_i - mean)``. The KL that
    RLOO adds to its reward is left to the caller.
    """
    valid_BG = ~rewards_BG.isnan()
    others_B1 = (valid_BG.sum(1, keepdim=True) - 1).clamp(min=1)
    total_B1 = masked_sum(rewards_BG, valid_BG, dim=1).unsqueeze(1)
    return _where_varied(rewards_BG, rewards_BG - (total_B1 - rewards_BG) / others_B1)


def maximum_likelihood_advantages(rewards_BG: Tensor, success: float) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``; a reward of at least ``success`` counts as 1, any other as 0.

    ``A_i = (r_i - mean) / mean``, 0 where no completion succeeds. MaxRL, arXiv 2602.02710, algorithm 1. With success
    probability ``p``, RL ascends ``p`` and maximum likelihood ``log p = - sum_k (1 - p)^k / k``; the expectation of
    this gradient is that of the first ``G - 1`` terms of the sum. (Without subtracting the mean it is that of ``G``
    terms, with more variance.)
    """
    solved_BG = _solved(rewards_BG, success)
    rate_B1 = masked_mean(solved_BG, ~rewards_BG.isnan(), dim=1).unsqueeze(1)
    return _where_varied(solved_BG, (solved_BG - rate_B1) / torch.where(rate_B1 > 0, rate_B1, 1))


def pass_at_k_advantages(rewards_BG: Tensor, success: float, k: int) -> Tensor:
    """``rewards_BG`` -> advantages ``[B, G]``; a reward of at least ``success`` is a success.

    All ``C(n, k)`` subsets of ``k`` of the group's ``n`` completions get the best reward of their members; their
    rewards are normalised, and a completion gets the mean over the subsets that it is in. In closed form, with ``f``
    failures:

        ``R = 1 - C(f, k) / C(n, k)``, ``sigma = sqrt(R (1 - R))``

        ``A = (1 - R) / sigma`` for a success, ``(1 - R - C(f - 1, k - 1) / C(n - 1, k - 1)) / sigma`` for a failure

    Pass@k training, arXiv 2508.10751, eq. 14 and 15. A group with fewer than ``k`` rewards gets zeros.
    """
    solved_BG = _solved(rewards_BG, success)
    valid_BG = ~rewards_BG.isnan()
    rewards_B1 = valid_BG.sum(1, keepdim=True)
    failures_B1 = rewards_B1 - masked_sum(solved_BG, valid_BG, dim=1).unsqueeze(1)
    none_B1 = _subsets_within(failures_B1, rewards_B1, k)
    sigma_B1 = ((1 - none_B1) * none_B1).sqrt()
    lost_B1 = _subsets_within(failures_B1 - 1, rewards_B1 - 1, k - 1)
    advantages_BG = torch.where(solved_BG == 1, none_B1, none_B1 - lost_B1)
    # Every subset holds a success, or none does.
    return torch.where(valid_BG & (sigma_B1 > 0), advantages_BG / torch.where(sigma_B1 > 0, sigma_B1, 1), 0)


def decoupled_scores(rewards_BGs: Sequence[Tensor], weights: Sequence[float], eps: float) -> Tensor:
    """Several rewards ``[B, G]`` each, and their weights -> scores ``[B, G]``, whose mean over a group is 0.

    ``S_i = sum_k w_k (r_ki - mean_k) / (std_k + eps)``, with the mean and std of each reward within the group. A
    missing reward adds nothing. GDPO, arXiv 2601.05242; its last step divides by the std of the scores of the batch.
    """
    normalised = [w * group_std_advantages(r_BG, eps) for r_BG, w in zip(rewards_BGs, weights, strict=True)]
    return torch.stack(normalised).sum(0)


def has_signal(advantages_BG: Tensor) -> Tensor:
    """``advantages_BG`` -> bool ``[B]``: True for a group that the policy gradient can learn from.

    ``any_i A_i != 0``. The gradient of a group without signal is exactly that of its KL term.
    """
    return (advantages_BG != 0).any(dim=1)


def _solved(rewards_BG: Tensor, success: float) -> Tensor:
    """1 for a success, 0 for a failure, NaN for a missing reward."""
    return torch.where(rewards_BG.isnan(), rewards_BG, (rewards_BG >= success).to(rewards_BG.dtype))


def _subsets_within(part: Tensor, whole: Tensor, k: int) -> Tensor:
    """``C(part, k) / C(whole, k)``: the share of subsets of ``k`` that lie in the part. 1 for ``k > whole``."""
    share = torch.ones_like(part)
    for taken in range(k):
        share = share * ((part - taken).clamp(min=0) / (whole - taken).clamp(min=1))
    return torch.where(whole >= k, share, 1)


def _centred(rewards_BG: Tensor) -> Tensor:
    return rewards_BG - masked_mean(rewards_BG, ~rewards_BG.isnan(), dim=1).unsqueeze(1)


def _where_varied(rewards_BG: Tensor, advantages_BG: Tensor) -> Tensor:
    """Keep the advantages of valid rewards in groups whose rewards differ; return exact zeros elsewhere."""
    valid_BG = ~rewards_BG.isnan()
    # A single reward is its own maximum and minimum, so this covers groups of fewer than two as well.
    varied_B = masked_max(rewards_BG, valid_BG, dim=1) > -masked_max(-rewards_BG, valid_BG, dim=1)
    return torch.where(valid_BG & varied_B.unsqueeze(1), advantages_BG, 0)
