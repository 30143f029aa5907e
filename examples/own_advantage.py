"""An advantage of your own: a subclass of Advantage, named by its class_path. This one is a control: nothing to learn.

grpo fit --config configs/quickstart.yaml --model.advantage examples.own_advantage.Neighbours
"""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages import GroupStd, RewardMoments


class Neighbours(GroupStd):
    """GRPO's advantages, each given to the next completion of the group.

    The rewards and the size of the steps stay those of GRPO, but say nothing about the completion that gets them. What
    a policy gains by them is not due to the verifier.
    """

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        # A missing reward has no advantage to give.
        return super().advantages(rewards_BG, moments).nan_to_num(0.0).roll(1, dims=1)
