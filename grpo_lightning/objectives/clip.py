"""The clipped surrogate of PPO, which GRPO keeps."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import clipped_objective, token_ratio
from grpo_lightning.objectives.base import Objective, PolicyLossTerms


class Clip(Objective):
    """``J = min( rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A )``, with the ratio ``rho`` of each token.

    PPO, https://arxiv.org/abs/1707.06347, eq. 7; GRPO, https://arxiv.org/abs/2402.03300, eq. 3. The equation is
    :func:`grpo_lightning.functional.clipped_objective`. ``objective: clip`` is its short form.

    Args:
        epsilon: clip of the ratio.
        epsilon_high: upper clip; default: ``epsilon``. Clip-higher of DAPO, https://arxiv.org/abs/2503.14476.
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high``; default: no cap. INTELLECT-2,
            https://arxiv.org/abs/2505.07291.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "clip"

    def __init__(self, epsilon: float = 0.2, epsilon_high: float | None = None, delta: float | None = None) -> None:
        high = epsilon if epsilon_high is None else epsilon_high
        if not (epsilon >= 0 and high >= 0):
            raise ConfigError(
                f"{type(self).__name__}: epsilon and epsilon_high must not be negative, but are {epsilon} and "
                f"{epsilon_high}"
            )
        if delta is not None and not delta > 1 + high:
            raise ConfigError(
                f"{type(self).__name__}: delta must be above 1 + epsilon_high = {1 + high:g}, the clip that it caps, "
                f"but is {delta}"
            )
        self.epsilon = epsilon
        self.epsilon_high = epsilon_high
        self.delta = delta

    def ratio(self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """The importance ratio that is clipped, ``[N, T]``."""
        return token_ratio(logprobs_NT, old_logprobs_NT, mask_NT)

    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        ratio_NT = self.ratio(logprobs_NT, old_logprobs_NT, mask_NT)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        objective_NT, clipped_NT = clipped_objective(ratio_NT, advantages_NT, self.epsilon, high, self.delta)
        return PolicyLossTerms(-objective_NT, ratio_NT, clipped_NT)
