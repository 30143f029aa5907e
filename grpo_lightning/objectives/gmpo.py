"""Geometric-mean policy optimization."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import geometric_mean_objective, token_ratio
from grpo_lightning.objectives.base import Objective, PolicyLossTerms


class GMPO(Objective):
    """``J_i = ( prod_t c(rho_it) )^(1/|y_i|) A_i``: the geometric mean of a completion's clipped ratios.

    ``c(rho) = min(rho, e^epsilon_high)`` for ``A > 0``, and ``max(rho, e^-epsilon)`` for ``A < 0``: each token is
    clipped before the mean, which one token far off moves little. GMPO, https://arxiv.org/abs/2507.20673. The equation
    is :func:`grpo_lightning.functional.geometric_mean_objective`.

    Args:
        epsilon: clip of the logarithm of the ratio; 0.4 as in the paper, which clips to (e^-0.4, e^0.4).
        epsilon_high: upper clip; default: ``epsilon``. Not in the paper.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "gmpo"

    def __init__(self, epsilon: float = 0.4, epsilon_high: float | None = None) -> None:
        high = epsilon if epsilon_high is None else epsilon_high
        if not (epsilon >= 0 and high >= 0):
            raise ConfigError(
                f"GMPO: epsilon and epsilon_high must not be negative, but are {epsilon} and {epsilon_high}"
            )
        self.epsilon = epsilon
        self.epsilon_high = epsilon_high

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        objective_NT, clipped_NT = geometric_mean_objective(
            logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT, self.epsilon, high
        )
        return PolicyLossTerms(-objective_NT, token_ratio(logprobs_NT, old_logprobs_NT, mask_NT), clipped_NT)
