"""Curricula: which prompts a step gets, by how often each has been solved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.pass_rates import PassRates
from grpo_lightning.rollout.sampling import row_seed

CurriculumName = Literal["uniform", "informative", "easy_to_hard"]


class Curriculum(ABC):
    """Draws the prompts of each step at random, without repetition, by weights. A subclass writes :meth:`weights`.

    A prompt whose last group was solved, or hopeless, is excluded and returns after some steps: the policy has changed.
    Where too few prompts are left, those that were excluded first return early.

    Args:
        solved: exclude a prompt if at least this share of its last group was correct; ``None`` excludes none.
        hopeless: exclude a prompt if at most this share of its last group was correct; ``None`` excludes none.
        return_after: steps until an excluded prompt may be drawn again.
        pass_rates: a file to start from, which ``grpo check --pass-rates`` or an earlier run has written. Default:
            nothing is known of any prompt.
    """

    def __init__(
        self,
        solved: float | None = 1.0,
        hopeless: float | None = 0.0,
        return_after: int = 50,
        pass_rates: str | None = None,
    ) -> None:
        for name, share in (("solved", solved), ("hopeless", hopeless)):
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"data.curriculum.{name}: must be from 0 to 1, or null for none, not {share}")
        if solved is not None and hopeless is not None and solved <= hopeless:
            raise ConfigError(f"data.curriculum.solved: must be above hopeless ({hopeless}), not {solved}")
        if return_after < 1:
            raise ConfigError(f"data.curriculum.return_after: must be at least 1, not {return_after}")
        self.solved = solved
        self.hopeless = hopeless
        self.return_after = return_after
        self.pass_rates = pass_rates

    @abstractmethod
    def weights(self, rate_N: Tensor, step: int) -> Tensor:
        """How likely each prompt is to be drawn, relative to the others; 0: only where no others are left.

        Args:
            rate_N: estimated pass rates of the prompts that are not excluded: ``(passes + 1) / (attempts + 2)``, so 1/2
                for a prompt not visited yet.
            step: training steps done.
        """

    def excluded(self, rates: PassRates, step: int) -> Tensor:
        """Which rows are excluded at a step, as booleans ``[N]``."""
        attempts_N, passes_N = rates.attempts_N, rates.passes_N
        share_N = passes_N / attempts_N.clamp(min=1)
        out_N = torch.zeros_like(attempts_N, dtype=torch.bool)
        if self.solved is not None:
            out_N |= share_N >= self.solved
        if self.hopeless is not None:
            out_N |= share_N <= self.hopeless
        return out_N & (attempts_N > 0) & (step - rates.step_N < self.return_after)

    def draw(
        self, rates: PassRates, step: int, count: int, seed: int, parts: Sequence[tuple[list[int], float]] = ()
    ) -> list[int]:
        """Different rows, from (seed, step) and the pass rates alone; fewer than ``count`` if there are fewer rows.

        Args:
            rates: what is known of the rows.
            step: training steps done.
            count: how many.
            seed: the run's.
            parts: the rows of each task of a mixture, and its share of the weights.
        """
        kept_N = ~self.excluded(rates, step)
        rate_N = (rates.passes_N + 1) / (rates.attempts_N + 2)
        weight_N = torch.zeros_like(rate_N, dtype=torch.double)
        if kept_N.any():
            weight_N[kept_N] = self._checked_weights(rate_N[kept_N], step)
        for rows, share in parts:
            weight_N[rows] *= share / weight_N[rows].sum().clamp(min=torch.finfo(weight_N.dtype).tiny)
        generator = torch.Generator().manual_seed(row_seed(seed, "curriculum", step))
        # The first arrivals of Poisson processes with these rates are a weighted draw without replacement.
        arrival_N = torch.empty_like(weight_N).exponential_(generator=generator) / weight_N
        # Then those excluded first, then those that are not to be drawn yet; at random where nothing tells them apart.
        later_N = torch.where(kept_N, torch.inf, rates.step_N.double())
        order_N = torch.randperm(len(rate_N), generator=generator)
        for key_N in (torch.where(weight_N > 0, arrival_N, later_N), (weight_N == 0).double()):
            order_N = order_N[key_N[order_N].argsort(stable=True)]
        order: list[int] = order_N[:count].tolist()
        return order

    def _checked_weights(self, rate_N: Tensor, step: int) -> Tensor:
        weight_N = self.weights(rate_N, step).double()
        if weight_N.shape != rate_N.shape or not (weight_N.isfinite() & (weight_N >= 0)).all():
            raise ConfigError(f"data.curriculum: {type(self).__name__}.weights must return a number >= 0 for each row")
        return weight_N


class UniformDraw(Curriculum):
    """All prompts alike, but those that are excluded."""

    def weights(self, rate_N: Tensor, step: int) -> Tensor:
        return torch.ones_like(rate_N)


class Informative(Curriculum):
    """By the variance of a right-or-wrong reward, ``p (1 - p)``: most where half of a group is correct."""

    def weights(self, rate_N: Tensor, step: int) -> Tensor:
        return rate_N * (1 - rate_N)


class EasyToHard(Curriculum):
    """The easiest prompts first, and more of them as training continues.

    At step ``t`` the easiest ``c(t) = min(1, sqrt(t / steps (1 - start^2) + start^2))`` of the prompts that are not
    excluded are drawn alike: the competence of Platanios et al. (arXiv 1903.09848), with pass rates as the difficulty.
    Equal rates are admitted together, so all prompts are as long as nothing is known of them: measure them with ``grpo
    check --pass-rates``.

    Args:
        start: share of the prompts that is admitted at first.
        steps: training steps after which all are.
        solved: exclude a prompt if at least this share of its last group was correct; ``None`` excludes none.
        hopeless: exclude a prompt if at most this share of its last group was correct; ``None`` excludes none.
        return_after: steps until an excluded prompt may be drawn again.
        pass_rates: a file to start from, which ``grpo check --pass-rates`` or an earlier run has written. Default:
            nothing is known of any prompt.
    """

    def __init__(
        self,
        start: float = 0.2,
        steps: int = 100,
        solved: float | None = 1.0,
        hopeless: float | None = 0.0,
        return_after: int = 50,
        pass_rates: str | None = None,
    ) -> None:
        super().__init__(solved, hopeless, return_after, pass_rates)
        if not 0 < start <= 1:
            raise ConfigError(f"data.curriculum.start: must be above 0 and at most 1, not {start}")
        if steps < 1:
            raise ConfigError(f"data.curriculum.steps: must be at least 1, not {steps}")
        self.start = start
        self.steps = steps

    def weights(self, rate_N: Tensor, step: int) -> Tensor:
        share = min(1.0, math.sqrt(step / self.steps * (1 - self.start**2) + self.start**2))
        admitted = math.ceil(share * len(rate_N))
        hardest = rate_N.sort(descending=True).values[admitted - 1]
        return (rate_N >= hardest).float()


def named_curriculum(chosen: CurriculumName | Curriculum | None) -> Curriculum | None:
    """The curriculum of the key ``curriculum``: the one given, or the one of that name with its defaults.

    Raises:
        ConfigError: there is none of that name.
    """
    if chosen is None or isinstance(chosen, Curriculum):
        return chosen
    classes: dict[str, type[Curriculum]] = {
        "uniform": UniformDraw, "informative": Informative, "easy_to_hard": EasyToHard,
    }  # fmt: skip
    if chosen not in classes:
        raise ConfigError(f"data.curriculum: must be one of {', '.join(classes)} or a Curriculum, not {chosen!r}")
    return classes[chosen]()
