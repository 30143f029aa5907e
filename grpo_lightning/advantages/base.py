"""The contract of an advantage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import masked_mean, masked_std


class RewardMoments(NamedTuple):
    """Mean and (Bessel-corrected) std of the rewards of a step: of first attempts, over all ranks. Scalars.

    Of an advantage that takes several rewards, of its :meth:`Advantage.scores` instead.
    """

    mean: Tensor
    std: Tensor


class Advantage(ABC):
    """What a completion's reward is worth. A subclass writes :meth:`advantages`; its constructor's arguments are its
    options in YAML.

    One that takes the rewards of several verifiers separately also writes :meth:`rewards_taken` and :meth:`scores`.
    """

    name: ClassVar[str]
    """What tables of runs call it; default: the name of the class."""
    smallest_group: int = 2
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

    def rewards_taken(self, names: Sequence[str]) -> Sequence[str]:
        """Names of the rewards that :meth:`scores` gets separately. Default: none, only their combination is used.

        Args:
            names: those that a run has: of its verifiers, and of their parts as ``verifier/part``; of a single
                verifier those of its parts.

        Raises:
            ConfigError: a reward that it needs is missing.
        """
        return ()

    def scores(self, rewards_BG: Tensor, separate_BG: Mapping[str, Tensor]) -> Tensor:
        """One number ``[B, G]`` per completion, computed within its group, which takes the place of its reward in
        :meth:`advantages`. Default: the reward.

        Args:
            rewards_BG: the combined rewards; NaN where one is missing.
            separate_BG: the rewards of :meth:`rewards_taken` by name, ``[B, G]`` each; NaN where one is missing.
        """
        return rewards_BG

    def checked_scores(self, rewards_BG: Tensor, separate_BG: Mapping[str, Tensor]) -> Tensor:
        """:meth:`scores`, NaN where the combined reward is.

        Raises:
            ConfigError: :meth:`scores` returned something else than a finite number for each reward.
        """
        scores_BG = self.scores(rewards_BG, separate_BG)
        place, is_missing_BG = f"{type(self).__name__}.scores", rewards_BG.isnan()
        if not isinstance(scores_BG, Tensor) or scores_BG.shape != rewards_BG.shape:
            raise ConfigError(f"{place} must return a tensor of shape {tuple(rewards_BG.shape)}")
        if not (scores_BG.isfinite() | is_missing_BG).all():
            raise ConfigError(f"{place} returned NaN or infinity for a finite reward")
        return torch.where(is_missing_BG, torch.nan, scores_BG)

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
