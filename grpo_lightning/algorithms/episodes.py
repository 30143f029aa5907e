"""Completions as episodes of tokens: their rewards, and what follows from a critic's values of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lightning.functional import gae, turn_gae
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


class Lambdas(NamedTuple):
    """Lambdas of GAE.

    Args:
        token: from token to token, one number or one per row, ``[N]``.
        turn: from turn to turn, where the turns of a conversation are one episode.
    """

    token: float | Tensor
    turn: float = 1.0


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
        lambdas: those of the advantages.
        value_lambdas: those of the critic's targets; ``None`` for the same.
        next_N: the row of the turn that follows each one, -1 for none; ``None`` where each row is one episode.
        turn_gamma: discount of a turn, with ``next_N``.
    """

    tokens: TokenRows
    rewards_NT: Tensor
    mask_NT: Tensor
    unfinished_N: Tensor | None
    lengths_N: Tensor
    gamma: float
    lambdas: Lambdas
    value_lambdas: Lambdas | None = None
    next_N: Tensor | None = None
    turn_gamma: float = 1.0

    @property
    def states(self) -> int:
        """States per row whose values are needed: those before each token, and with ``unfinished_N`` the last."""
        return self.rewards_NT.shape[1] + (self.unfinished_N is not None)

    def targets(self, values_NS: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages of the tokens, and targets of their values.

        Args:
            values_NS: values of the states before each token, and with ``unfinished_N`` of the one after the last.

        Returns:
            ``advantages_NT``, 0 where the mask is False, and ``returns_NT``.
        """
        advantages_NT = errors_NT = self._estimates(values_NS, self.lambdas, slice(None))
        if self.value_lambdas is not None:
            errors_NT = self._estimates(values_NS, self.value_lambdas, slice(None))
        return advantages_NT, values_NS[:, : errors_NT.shape[1]] + errors_NT

    def returns(self) -> Tensor:
        """``[N, T]``: the returns themselves, without any value: those of lambda 1."""
        zeros_NT = torch.zeros_like(self.rewards_NT)
        alone = replace(self, unfinished_N=None, lambdas=Lambdas(1.0, 1.0), value_lambdas=None)
        return alone.targets(zeros_NT)[1]

    def value_errors(self, values_NS: Tensor, rows: Tensor) -> Tensor:
        """``[N, T]``: targets minus values of some rows, without the values of any other: where ``next_N`` is ``None``.

        Args:
            values_NS: values as for :meth:`targets`. It may be narrower than all rows are.
            rows: the rows.
        """
        assert self.next_N is None, "a turn's target depends on the values of the turns that follow it"
        return self._estimates(values_NS, self.lambdas if self.value_lambdas is None else self.value_lambdas, rows)

    def _estimates(self, values_NS: Tensor, lambdas: Lambdas, rows: Tensor | slice) -> Tensor:
        bootstrap_N, values_NT = None, values_NS
        if self.unfinished_N is not None:
            after_last_N = values_NS.gather(1, self.lengths_N[rows][:, None])[:, 0]
            bootstrap_N, values_NT = torch.where(self.unfinished_N[rows], after_last_N, 0), values_NS[:, :-1]
        width, lam = values_NT.shape[1], lambdas.token
        rewards_NT, mask_NT = self.rewards_NT[rows, :width], self.mask_NT[rows, :width]
        lam = lam[rows] if isinstance(lam, Tensor) else lam
        if self.next_N is None:
            return gae(rewards_NT, values_NT, mask_NT, gamma=self.gamma, lam=lam, bootstrap_N=bootstrap_N)
        return turn_gae(
            rewards_NT, values_NT, mask_NT, self.next_N, gamma=self.gamma, lam=lam, turn_gamma=self.turn_gamma,
            turn_lam=lambdas.turn, bootstrap_N=bootstrap_N,
        )  # fmt: skip
