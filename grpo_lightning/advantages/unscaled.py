"""The advantage of Dr. GRPO."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.functional import unscaled_advantages


class Unscaled(Advantage):
    """``A = r - mean of the group``, not divided by a std. Dr. GRPO, https://arxiv.org/abs/2503.20783.

    ``advantage: none-scaled`` is its short form.
    """

    name = "none-scaled"

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return unscaled_advantages(rewards_BG)
