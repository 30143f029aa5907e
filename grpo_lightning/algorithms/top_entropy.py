"""Learning only from the tokens with the largest entropy."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from grpo_lightning.algorithms.metrics import RankedModule
from grpo_lightning.algorithms.passes import Passes
from grpo_lightning.functional import length_mask
from grpo_lightning.rollout.experience import Experience


def top_entropy_advantages(experience: Experience, passes: Passes, ranks: RankedModule, share: float) -> Experience:
    """The experience with advantages per token: 0 but for the tokens with the largest entropy.

    ``A_it [H_it >= threshold]``, with the threshold that a share of the tokens reaches. Beyond the 80/20 rule,
    https://arxiv.org/abs/2506.01939. The tokens are those of all rows with an advantage, in the whole step and over all
    ranks, and the entropies those before the update; the paper takes a threshold per micro-batch, whose gradient would
    depend on how the step is split. The loss is divided by the count of all tokens, as in the paper. Of equal entropies
    at the threshold all count. Every rank must call it.

    Args:
        experience: the rows of a step, with their advantages.
        passes: makes one pass without gradient over the rows with an advantage.
        ranks: knows the entropies of all ranks.
        share: from above 0 to 1.
    """
    assert experience.advantages is not None, "targets computes them"
    advantages_NT = experience.advantages
    if advantages_NT.dim() == 1:
        advantages_NT = advantages_NT[:, None].expand_as(experience.sampler_logprobs_NT)
    rows_N = experience.learned_N & (advantages_NT != 0).any(1)
    entropy_NT = passes.entropies(experience, rows_N)
    mask_NT = length_mask(experience.tokens.completion_lengths_N, entropy_NT.shape[1]) & rows_N[:, None]
    threshold = _threshold(ranks.all_ranks_values(entropy_NT[mask_NT]), share)
    return replace(experience, advantages=torch.where(mask_NT & (entropy_NT >= threshold), advantages_NT, 0))


def _threshold(values_M: Tensor, share: float) -> float:
    """The smallest of the largest ``share`` of the values; infinite without any."""
    if not len(values_M):
        return math.inf
    return float(values_M.topk(math.ceil(share * len(values_M))).values[-1])
