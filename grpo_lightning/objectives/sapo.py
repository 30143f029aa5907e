"""Soft adaptive policy optimization."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import soft_gated_objective, token_ratio
from grpo_lightning.objectives.base import Objective, PolicyLossTerms


class SAPO(Objective):
    """``J = 4/tau sigmoid(tau (rho - 1)) A``: the gradient fades with the distance of the ratio, without a clip.

    ``tau`` is ``tau_pos`` for ``A > 0`` and ``tau_neg`` otherwise. SAPO, https://arxiv.org/abs/2511.20347.
    The equation is :func:`grpo_lightning.functional.soft_gated_objective`.

    Args:
        tau_pos: how quickly the gradient of a token fades whose advantage is positive.
        tau_neg: the same for a negative advantage. The paper has it larger, for stability.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "sapo"

    def __init__(self, tau_pos: float = 1.0, tau_neg: float = 1.05) -> None:
        if not (tau_pos > 0 and tau_neg > 0):
            raise ConfigError(f"SAPO: tau_pos and tau_neg must be positive, but are {tau_pos} and {tau_neg}")
        self.tau_pos = tau_pos
        self.tau_neg = tau_neg

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        ratio_NT = token_ratio(logprobs_NT, old_logprobs_NT, mask_NT)
        objective_NT = soft_gated_objective(ratio_NT, advantages_NT, self.tau_pos, self.tau_neg)
        return PolicyLossTerms(-objective_NT, ratio_NT, clipped_NT=torch.zeros_like(mask_NT))
