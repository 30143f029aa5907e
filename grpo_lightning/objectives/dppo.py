"""Divergence proximal policy optimization."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import BinaryDivergence, binary_divergence, divergence_masked_objective, token_ratio
from grpo_lightning.objectives.base import Objective, PolicyLossTerms

THRESHOLDS: dict[str, float] = {"tv": 0.15, "kl": 0.05}
"""Those of the authors' recipe."""


class DPPO(Objective):
    """``J = M rho A``, with ``M = 0`` where the policy has moved too far at a token and would move further.

    How far is a divergence of probabilities instead of their ratio, so a rare token may double and a likely one may
    not halve. It is approximated by that of two coins, whether the sampled token is drawn or another one.
    DPPO, https://arxiv.org/abs/2602.04879, eq. 11 to 14. The equations are
    :func:`grpo_lightning.functional.divergence_masked_objective` and
    :func:`grpo_lightning.functional.binary_divergence`. The paper measures from the policy that sampled, as
    ``old_logprobs: sampler`` does. Not implemented: the top-K approximation, which needs more log-probs per token of
    the sampler.

    Args:
        divergence: ``tv``, the total variation, or ``kl``, that of the present policy from the one that sampled.
        threshold: the largest divergence that is not masked; default: 0.15 for ``tv``, 0.05 nats for ``kl``.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "dppo"

    def __init__(self, divergence: BinaryDivergence = "tv", threshold: float | None = None) -> None:
        if divergence not in get_args(BinaryDivergence):
            raise ConfigError(f"DPPO: divergence must be 'tv' or 'kl', not {divergence!r}")
        if threshold is not None and not threshold > 0:
            raise ConfigError(f"DPPO: threshold must be positive, but is {threshold}")
        self.divergence: BinaryDivergence = divergence
        self.threshold = threshold

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        threshold = THRESHOLDS[self.divergence] if self.threshold is None else self.threshold
        ratio_NT = token_ratio(logprobs_NT, old_logprobs_NT, mask_NT)
        divergence_NT = binary_divergence(logprobs_NT, old_logprobs_NT, self.divergence)
        objective_NT, masked_NT = divergence_masked_objective(ratio_NT, advantages_NT, divergence_NT, threshold)
        return PolicyLossTerms(-objective_NT, ratio_NT, masked_NT)
