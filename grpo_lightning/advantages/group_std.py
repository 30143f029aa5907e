"""The advantage of GRPO."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import group_std_advantages


class GroupStd(Advantage):
    """``A = (r - mean of the group) / (std of the group + eps)``. GRPO, https://arxiv.org/abs/2402.03300.

    ``advantage: group`` is its short form.

    Args:
        eps: keeps a group of nearly equal rewards from being scaled up; 1e-4 as in TRL, not in the paper.

    Raises:
        ConfigError: ``eps`` is negative.
    """

    name = "group"

    def __init__(self, eps: float = 1e-4) -> None:
        if not eps >= 0:
            raise ConfigError(f"GroupStd: eps must not be negative, but is {eps}")
        self.eps = eps

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return group_std_advantages(rewards_BG, self.eps)
