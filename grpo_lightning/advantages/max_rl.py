"""The advantage of maximum likelihood reinforcement learning."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import maximum_likelihood_advantages


class MaxRL(Advantage):
    """``A = (r - p) / p``, with ``r`` 1 for a success and 0 otherwise, and ``p`` the group's share of successes.

    0 where none succeeds. The larger the group, the closer the gradient is to that of ``log p``, which weighs prompts
    by the inverse of their success rate. MaxRL, https://arxiv.org/abs/2602.02710, algorithm 1. The paper assumes two
    rewards; here, a reward below ``success`` counts as a failure. The equation is
    :func:`grpo_lightning.functional.maximum_likelihood_advantages`.

    Args:
        success: the smallest reward of a success; 1.0 is ``reward_correct`` of a verifier.

    Raises:
        ConfigError: ``success`` is not a finite number.
    """

    name = "max-rl"

    def __init__(self, success: float = 1.0) -> None:
        if not abs(success) < float("inf"):
            raise ConfigError(f"MaxRL: success must be a finite number, but is {success}")
        self.success = success

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return maximum_likelihood_advantages(rewards_BG, self.success)
