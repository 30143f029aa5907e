"""The advantage of GDPO, for several rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import decoupled_scores


class GDPO(Advantage):
    """``A = S / (std of S over the step + eps)``, ``S = sum_k w_k (r_k - mean_k) / (std_k + eps)`` within the group.

    Each reward is normalised by itself, so that combinations of rewards with equal sums stay different, and none is
    drowned by another with a larger spread. GDPO, https://arxiv.org/abs/2601.05242. The equation of ``S`` is
    :func:`grpo_lightning.functional.decoupled_scores`. The paper also subtracts the mean of ``S`` over the step, which
    is 0; not doing so keeps the exact zeros of groups without signal.

    The rewards are those of several ``verifiers``, or of the parts of a single composite one, whose weights are for the
    logged reward alone. A completion without a combined reward has no advantage.

    Args:
        weights: the weight of each reward by its name, as in the curves ``reward/NAME``; the others are not used.
            Default: 1 for each verifier, or each part of a single one.
        eps: keeps nearly equal rewards from being scaled up.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "gdpo"

    def __init__(self, weights: dict[str, float] | None = None, eps: float = 1e-4) -> None:
        if not eps >= 0:
            raise ConfigError(f"GDPO: eps must not be negative, but is {eps}")
        for name, weight in (weights or {}).items():
            if not abs(weight) < float("inf"):
                raise ConfigError(f"GDPO: the weight of {name!r} must be a finite number, but is {weight}")
        self.weights = weights
        self.eps = eps

    def rewards_taken(self, names: Sequence[str]) -> Sequence[str]:
        """Those with a weight; by default those that are not parts of another one."""
        taken = list(self.weights) if self.weights is not None else [name for name in names if "/" not in name]
        known = ", ".join(names) or "none"
        for name in taken:
            if name not in names:
                raise ConfigError(f"GDPO: weights names the reward {name!r}, but the rewards of this run are {known}")
        if len(taken) < 2:
            raise ConfigError(
                f"GDPO: it normalises several rewards, and this run has {known}: give several verifiers, or a "
                "WeightedVerifier with several parts"
            )
        return taken

    def scores(self, rewards_BG: Tensor, separate_BG: Mapping[str, Tensor]) -> Tensor:
        weights = [1.0 if self.weights is None else self.weights[name] for name in separate_BG]
        return decoupled_scores(list(separate_BG.values()), weights, self.eps)

    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return torch.where(rewards_BG == 0, rewards_BG, rewards_BG / (moments.std + self.eps))
