"""GRPO: group-relative policy optimization, arXiv 2402.03300, and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.advantages import Advantage, AdvantageName, RewardMoments, Unscaled, named_advantage
from grpo_lightning.algorithms.credit import groups_of
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import has_signal, kl_divergence, masked_std, shaped_objective
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Experience


class GRPOModule(OnlineModule):
    """Group-relative policy optimization.

    ``L = - 1/N sum_i 1/|y_i| sum_t [ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) - beta KL(pi || pi_ref) ]``
    with ``A = (r - mean of the group) / (std of the group + eps)`` and ``rho`` the ratio to the policy that sampled.
    Each part has its variants; the equations are in :mod:`grpo_lightning.functional`, the classes in
    :mod:`grpo_lightning.objectives` and :mod:`grpo_lightning.advantages`. With ``beta = 0``, groups without signal cost
    nothing. The options that it shares with PPO are those of :class:`OnlineModule`.

    Args:
        advantage: ``group`` (:class:`GroupStd`); ``none-scaled`` (:class:`Unscaled`) does not divide (Dr. GRPO, arXiv
            2503.20783); ``batch-std`` (:class:`BatchStd`) divides by the std of the step's rewards; ``leave_one_out``
            (:class:`LeaveOneOut`) is RLOO's (arXiv 2402.14740); or a class by its ``class_path``.
    """

    compares_groups = True
    step_means = (
        *OnlineModule.step_means, "reward/groups_without_signal",
        "resample/replaced", "resample/silent", "resample/used_tokens",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        advantage: Advantage | AdvantageName = "group",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.advantage = named_advantage(advantage)
        self.validate_options()

    def validate_options(self) -> None:
        super().validate_options()
        try:
            self.advantage.check()
            self.advantage.rewards_taken(self.reward_names)
        except ConfigError as error:
            raise ConfigError(f"model.advantage: {error}") from error

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().on_data_ready(data, stage)
        if data.resample_silent is not None and self.advantage.rewards_taken(self.reward_names):
            raise ConfigError(
                f"data.resample_silent: goes by the combined reward, and {type(self.advantage).__name__} also learns "
                "where that is equal and its parts differ: remove it, or set model.advantage to another one"
            )
        if stage == "fit" and data.group_size < self.advantage.smallest_group:
            raise ConfigError(
                f"data.group_size: an advantage relative to the group needs at least {self.advantage.smallest_group} "
                f"completions per prompt, not {data.group_size}"
            )

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """Advantages within the groups. Distilled attempts are one group with the others, and take no std."""
        scored_N, groups = experience.scored_N, groups_of(experience, self.episode_credit)
        rewards_BG = groups.table(self.credited(experience))
        separate_BG = {
            name: groups.table(self.credited(experience, experience.rewards_by_name(name)))
            for name in self.advantage.rewards_taken(self.reward_names)
        }
        scores_BG = self.advantage.checked_scores(rewards_BG, separate_BG)
        first_N = (groups.rows(scores_BG) if separate_BG else self._own_rewards(experience))[: experience.first]
        moments = RewardMoments(*self.all_ranks_moments(first_N[~first_N.isnan()]))
        centred_N = groups.rows(Unscaled()(rewards_BG, moments))
        advantages_N = centred_N
        if not experience.distilled_N.any():
            advantages_N = groups.rows(self.advantage(scores_BG, moments))
        signal_B = has_signal(experience.of_groups(advantages_N))
        replaced = len(experience.replaced) // experience.recipe.group_size
        metrics.add("reward/groups_without_signal", (~signal_B).sum() + replaced, len(signal_B) + replaced)
        metrics.add_masked("advantage/abs_mean", advantages_N.abs(), scored_N)
        metrics.add("advantage/std", masked_std(advantages_N, scored_N), 1)
        metrics.add("advantage/gain", advantages_N.square().sum(), centred_N.square().sum())
        learned_N = experience.counted_N
        if self.beta == 0 and self.entropy_coef == 0:
            learned_N = learned_N & (advantages_N != 0)
        experience = replace(experience, advantages=advantages_N, learned_N=learned_N)
        return self.with_frozen_logprobs(experience, metrics)

    def _own_rewards(self, experience: Experience) -> Tensor:
        """``[N]``: rewards without what refinement credits; of an episode's first turn, its credit."""
        return experience.reward_N if experience.recipe.environment is None else self.credited(experience)

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The one loss of GRPO: the objective, the KL and the entropy. Distilled attempts, which have no ratio, are
        shaped instead.

        The KL has no importance weight, as in the paper, although its tokens may come from an older policy.
        """
        rows = part.rows
        entropies: list[Tensor] = []
        temperature = experience.recipe.sampling.temperature
        logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics, temperature, on_entropy=entropies.append)
        logprobs_NT = torch.where(mask_NT, logprobs_NT, 0)
        loss_NT = self.rollout_loss.terms(experience, part, metrics, logprobs_NT, mask_NT).loss_NT
        if experience.recipe.distills and experience.advantages is not None:
            advantages = experience.advantages[rows]
            advantages_NT = advantages[:, : mask_NT.shape[1]] if advantages.dim() == 2 else advantages[:, None]
            shaped_NT = shaped_objective(logprobs_NT, advantages_NT)
            loss_NT = torch.where(experience.distilled_N[rows, None], -shaped_NT, loss_NT)
        if experience.reference_NT is not None:
            reference_NT = experience.reference_NT[rows, : logprobs_NT.shape[1]]
            kl_NT = kl_divergence(logprobs_NT, reference_NT, self.kl_estimator, mask_NT)
            metrics.add_masked("policy/kl", kl_NT.detach(), mask_NT)
            loss_NT = loss_NT + self.beta * kl_NT
        if self.entropy_coef:
            loss_NT = loss_NT - self.entropy_coef * entropies[0]
        yield self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(experience, loss_NT, mask_NT))
