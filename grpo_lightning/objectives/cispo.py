"""The capped importance weight of CISPO."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import cispo_objective, sequence_ratio, token_ratio
from grpo_lightning.objectives.base import Objective, PolicyLossTerms

RatioLevel = Literal["token", "sequence"]


class CISPO(Objective):
    """``J = sg( min(rho, epsilon_high) ) A log pi``: the weight of a token is capped, and its gradient kept.

    CISPO, https://arxiv.org/abs/2506.13585, eq. 4, with the cap of ScaleRL, https://arxiv.org/abs/2510.13786. The
    equation is :func:`grpo_lightning.functional.cispo_objective`. ``objective: cispo`` is its short form, with the
    flat keys ``cispo_epsilon_high`` and ``ratio_level``.

    Args:
        epsilon_high: cap of the ratio.
        ratio_level: the ratio of each ``token``, as in the paper, or of the whole ``sequence``.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "cispo"

    def __init__(self, epsilon_high: float = 5.0, ratio_level: RatioLevel = "token") -> None:
        if not epsilon_high > 0:
            raise ConfigError(f"CISPO: epsilon_high must be positive, but is {epsilon_high}")
        if ratio_level not in get_args(RatioLevel):
            raise ConfigError(f"CISPO: ratio_level must be 'token' or 'sequence', not {ratio_level!r}")
        self.epsilon_high = epsilon_high
        self.ratio_level = ratio_level

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        ratio = token_ratio if self.ratio_level == "token" else sequence_ratio
        ratio_NT = ratio(logprobs_NT, old_logprobs_NT, mask_NT)
        objective_NT, capped_NT = cispo_objective(logprobs_NT, ratio_NT, advantages_NT, self.epsilon_high)
        return PolicyLossTerms(-objective_NT, ratio_NT, capped_NT)
