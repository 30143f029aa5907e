"""GRPO: group-relative policy optimization, arXiv 2402.03300, and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from grpo_lightning.algorithms.group import GroupModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.rollout.experience import Experience


class GRPOModule(GroupModule):
    """Group-relative policy optimization.

    ``L = - 1/N sum_i 1/|y_i| sum_t [ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) - beta KL(pi || pi_ref) ]``
    with ``A = (r - mean of the group) / (std of the group + eps)`` and ``rho`` the ratio to the policy that sampled.
    Each part has its variants; the equations are in :mod:`grpo_lightning.functional`, the classes in
    :mod:`grpo_lightning.objectives` and :mod:`grpo_lightning.advantages`. With ``beta = 0`` and no ``entropy_bonus``,
    groups without signal cost nothing. The option ``advantage`` is that of :class:`GroupModule`, those that it shares
    with PPO are those of :class:`OnlineModule`.
    """

    compares_groups = True
    step_means = (*GroupModule.step_means, "resample/replaced", "resample/silent", "resample/used_tokens")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validate_options()

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """Advantages within the groups; without a KL and an entropy bonus, rows without any are not learned from."""
        advantages_N = self.group_advantages(experience, metrics)
        learned_N = experience.counted_N
        if self.beta == 0 and self.entropy_bonus is None:
            learned_N = learned_N & (advantages_N != 0)
        experience = replace(experience, advantages=advantages_N, learned_N=learned_N)
        return self.with_frozen_logprobs(experience, metrics)

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The one loss of GRPO: the objective, the KL and the entropy, see :meth:`token_losses`."""
        loss_NT, mask_NT = self.token_losses(experience, part, metrics)
        yield self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(experience, loss_NT, mask_NT))
