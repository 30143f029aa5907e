"""The advantage of RLOO."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.functional import leave_one_out_advantages


class LeaveOneOut(Advantage):
    """``A = r - mean of the others of the group``. RLOO, https://arxiv.org/abs/2402.14740.

    ``advantage: leave_one_out`` is its short form.
    """

    name = "leave_one_out"

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return leave_one_out_advantages(rewards_BG)
