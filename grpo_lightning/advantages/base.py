"""The contract of an advantage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import masked_mean, masked_std


class RewardMoments(NamedTuple):
    """Mean and (Bessel-corrected) std of the rewards of a step: of first attempts, over all ranks. Scalars."""

    mean: Tensor
    std: Tensor


class Advantage(ABC):
    """What a completion's reward is worth. A subclass writes :meth:`advantages`; its constructor's arguments are its
    options in YAML."""

    name: ClassVar[str]
    """What tables of runs call it; default: the name of the class."""
    smallest_group: ClassVar[int] = 2
    """Completions per prompt that it needs; 1 for one that does not compare them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        """The advantages ``[B, G]`` of the completions of ``B`` prompts.

        Args:
            rewards_BG: NaN where a reward is missing: the verifier broke, or the group is smaller than ``G``. What is
                returned there is ignored. The functions of :mod:`grpo_lightning.functional` skip NaN.
            moments: statistics beyond the group. The rewards of ``rewards_BG`` are those of this rank only.
        """

    def __call__(self, rewards_BG: Tensor, moments: RewardMoments | None = None) -> Tensor:
        """:meth:`advantages` in float32 (float64 for float64 rewards), and 0 where the reward is NaN.

        Args:
            rewards_BG: NaN where a reward is missing.
            moments: those of the step. Default: those of ``rewards_BG``.

        Raises:
            ValueError: ``rewards_BG`` does not have two dimensions, or holds an infinite reward.
            ConfigError: :meth:`advantages` returned something else than a finite number for each reward.
        """
        if rewards_BG.dim() != 2:
            raise ValueError(
                f"rewards_BG must have two dimensions, prompts and group, but is {tuple(rewards_BG.shape)}."
            )
        if rewards_BG.dtype != torch.float64:
            rewards_BG = rewards_BG.float()
        if rewards_BG.isinf().any():
            raise ValueError(
                "rewards_BG holds an infinite reward; a reward is a finite number, or NaN where none is known."
            )
        valid_BG = ~rewards_BG.isnan()
        if moments is None:
            moments = RewardMoments(masked_mean(rewards_BG, valid_BG), masked_std(rewards_BG, valid_BG))
        advantages_BG = self.advantages(rewards_BG, moments)
        place = f"{type(self).__name__}.advantages"
        if not isinstance(advantages_BG, Tensor) or advantages_BG.shape != rewards_BG.shape:
            found = tuple(advantages_BG.shape) if isinstance(advantages_BG, Tensor) else type(advantages_BG).__name__
            raise ConfigError(f"{place} must return a tensor of shape {tuple(rewards_BG.shape)}, not {found}")
        advantages_BG = torch.where(valid_BG, advantages_BG, 0).to(rewards_BG.dtype)
        if not advantages_BG.isfinite().all():
            raise ConfigError(
                f"{place} returned NaN or infinity for a finite reward: rewards_BG is NaN where one is missing"
            )
        return advantages_BG

    def check(self) -> None:
        """Try it on an ordinary group, one with a missing reward, and one whose rewards are equal.

        Raises:
            ConfigError: it does not give each reward a finite number.
        """
        self(torch.tensor([[1.0, 0.0, 0.5], [1.0, torch.nan, 0.0], [1.0, 1.0, 1.0]], device="cpu"))
