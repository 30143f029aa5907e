"""The advantage of Lite PPO."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import batch_std_advantages


class BatchStd(Advantage):
    """``A = (r - mean of the group) / (std of all rewards of the step + eps)``. https://arxiv.org/abs/2508.08221.

    ``advantage: batch-std`` is its short form.

    Args:
        eps: keeps nearly equal rewards from being scaled up; not in the paper.

    Raises:
        ConfigError: ``eps`` is negative.
    """

    name = "batch-std"

    def __init__(self, eps: float = 1e-4) -> None:
        if not eps >= 0:
            raise ConfigError(f"BatchStd: eps must not be negative, but is {eps}")
        self.eps = eps

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return batch_std_advantages(rewards_BG, moments.std, self.eps)
