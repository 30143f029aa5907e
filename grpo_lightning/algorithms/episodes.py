"""Completions as episodes of tokens: their rewards, and what follows from a critic's values of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.functional import gae
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.types import TokenRows


@dataclass(frozen=True, kw_only=True)
class ValuedExperience(Experience):
    """An experience with a critic's values.

    Args:
        values_NT: the critic's values of the tokens, before the update.
        returns_NT: the targets of the values.
    """

    values_NT: Tensor
    returns_NT: Tensor


@dataclass(frozen=True)
class Episodes:
    """The completions of a step as episodes.

    Args:
        tokens: the rows that values are read from, see :attr:`states`.
        rewards_NT: token rewards, 0 where the mask is False.
        mask_NT: True where a token counts.
        unfinished_N: episodes that were cut off, whose return continues with the value of the state after the last
            token; ``None`` where all have ended.
        lengths_N: tokens per completion.
        gamma: discount of a token.
        lam: lambda of GAE.
    """

    tokens: TokenRows
    rewards_NT: Tensor
    mask_NT: Tensor
    unfinished_N: Tensor | None
    lengths_N: Tensor
    gamma: float
    lam: float

    @property
    def states(self) -> int:
        """States per row whose values are needed: those before each token, and with ``unfinished_N`` the last."""
        return self.rewards_NT.shape[1] + (self.unfinished_N is not None)

    def advantages(self, values_NS: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """GAE of some rows, which needs the values of no other.

        Args:
            values_NS: values of the states before each token, and with ``unfinished_N`` of the one after the last. It
                may be narrower than all rows are.
            rows: the rows.

        Returns:
            ``[N, T]``, 0 where the mask is False.
        """
        bootstrap_N, values_NT = None, values_NS
        if self.unfinished_N is not None:
            after_last_N = values_NS.gather(1, self.lengths_N[rows][:, None])[:, 0]
            bootstrap_N, values_NT = torch.where(self.unfinished_N[rows], after_last_N, 0), values_NS[:, :-1]
        width = values_NT.shape[1]
        rewards_NT, mask_NT = self.rewards_NT[rows, :width], self.mask_NT[rows, :width]
        return gae(rewards_NT, values_NT, mask_NT, gamma=self.gamma, lam=self.lam, bootstrap_N=bootstrap_N)
