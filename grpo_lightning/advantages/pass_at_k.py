"""The advantage of training for pass@k."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import pass_at_k_advantages


class PassAtK(Advantage):
    """The mean advantage of all subsets of ``k`` completions that a completion is in, each with its best reward.

    ``A = (1 - R) / sigma`` for a success, ``(1 - R - C(f - 1, k - 1) / C(n - 1, k - 1)) / sigma`` for a failure, with
    ``f`` failures among ``n`` completions, ``R = 1 - C(f, k) / C(n, k)`` and ``sigma = sqrt(R (1 - R))``. A group of
    which more than ``n - k`` succeed has nothing left to learn. Pass@k training, https://arxiv.org/abs/2508.10751,
    eq. 14 and 15. The equation is :func:`grpo_lightning.functional.pass_at_k_advantages`. With ``k = 1`` it is that of
    :class:`GroupStd` on successes, with the std divided by ``n`` instead of ``n - 1``.

    Args:
        k: completions of which one must succeed; below ``data.group_size``.
        success: the smallest reward of a success; 1.0 is ``reward_correct`` of a verifier.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "pass-at-k"

    def __init__(self, k: int = 2, success: float = 1.0) -> None:
        if k < 1:
            raise ConfigError(f"PassAtK: k must be at least 1, but is {k}")
        if not abs(success) < float("inf"):
            raise ConfigError(f"PassAtK: success must be a finite number, but is {success}")
        self.k = k
        self.success = success
        # Of k completions there is only one subset, and nothing to compare it with.
        self.smallest_group = k + 1

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return pass_at_k_advantages(rewards_BG, self.success, self.k)
