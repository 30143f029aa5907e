"""A loss of your own: a subclass of Objective, named by its class_path in own_objective.yaml.

grpo fit --config examples/own_objective.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import token_ratio
from grpo_lightning.objectives import Objective, PolicyLossTerms


class SoftGate(Objective):
    """``J = 4/tau * sigmoid(tau (rho - 1)) A``: the gradient fades with the distance of the ratio, without a clip.

    At ``rho = 1`` its gradient is that of REINFORCE, ``A grad log pi``. The shipped :class:`SAPO` has a ``tau`` for
    each sign of the advantage.

    Args:
        tau: how quickly the gradient fades.
    """

    def __init__(self, tau: float = 1.0) -> None:
        if not tau > 0:
            raise ConfigError(f"SoftGate: tau must be positive, but is {tau}")
        self.tau = tau

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        ratio_NT = token_ratio(logprobs_NT, old_logprobs_NT, mask_NT)
        gate_NT = 4 / self.tau * torch.sigmoid(self.tau * (ratio_NT - 1))
        return PolicyLossTerms(-gate_NT * advantages_NT, ratio_NT, clipped_NT=torch.zeros_like(mask_NT))
