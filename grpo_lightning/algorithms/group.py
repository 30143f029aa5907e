"""What algorithms that compare the rewards of a group share: the option for the advantage, and the loss of a token."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.advantages import Advantage, AdvantageName, RewardMoments, named_advantage
from grpo_lightning.algorithms.credit import groups_of
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import has_signal, kl_divergence, shaped_objective, unscaled_advantages
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.speed.shared_prompt import PredictingStates


class GroupModule(OnlineModule, ABC):
    """Base of the algorithms with advantages relative to the group. A subclass writes :meth:`targets`, out of
    :meth:`group_advantages`, and :meth:`losses`, out of :meth:`token_losses`.

    Args:
        advantage: ``group`` (:class:`GroupStd`); ``none-scaled`` (:class:`Unscaled`) does not divide (Dr. GRPO, arXiv
            2503.20783); ``batch-std`` (:class:`BatchStd`) divides by the std of the step's rewards; ``leave_one_out``
            (:class:`LeaveOneOut`) is RLOO's (arXiv 2402.14740); or a class by its ``class_path``.
    """

    step_means = (*OnlineModule.step_means, "reward/groups_without_signal")

    def __init__(
        self,
        *args: Any,
        advantage: Advantage | AdvantageName = "group",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.advantage = named_advantage(advantage)

    def validate_options(self) -> None:
        super().validate_options()
        try:
            self.advantage.check()
            self.advantage.rewards_taken(self.reward_names)
        except ConfigError as error:
            raise ConfigError(f"model.advantage: {error}") from error

    @property
    def compares_rewards(self) -> bool:
        return True

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().on_data_ready(data, stage)
        if data.resample_silent is not None and self.advantage.rewards_taken(self.reward_names):
            raise ConfigError(
                f"data.resample_silent: goes by the combined reward, and {type(self.advantage).__name__} also learns "
                "where that is equal and its parts differ: remove it, or set model.advantage to another one"
            )
        if stage == "fit" and self.compares_rewards and data.group_size < self.advantage.smallest_group:
            raise ConfigError(
                f"data.group_size: an advantage relative to the group needs at least {self.advantage.smallest_group} "
                f"completions per prompt, not {data.group_size}"
            )

    def group_advantages(self, experience: Experience, metrics: StepMetrics) -> Tensor:
        """Advantages within the groups, ``[N]``. A distilled attempt joins its group, which then takes no std."""
        scored_N, groups = experience.scored_N, groups_of(experience, self.episode_credit)
        credited_N = self.credited(experience)
        rewards_BG = groups.table(credited_N)
        separate_BG = {
            name: groups.table(self.credited(experience, experience.rewards_by_name(name)))
            for name in self.advantage.rewards_taken(self.reward_names)
        }
        scores_BG = self.advantage.checked_scores(rewards_BG, separate_BG)
        # Rewards without what refinement credits; of an episode's first turn, its credit.
        own_N = experience.reward_N if experience.recipe.environment is None else credited_N
        first_N = (groups.rows(scores_BG) if separate_BG else own_N)[: experience.first]
        moments = RewardMoments(*self.all_ranks_moments(first_N[~first_N.isnan()]))
        centred_N = groups.rows(unscaled_advantages(rewards_BG))
        joined_BG = groups.table((experience.distilled_N & scored_N).float()) > 0
        joined_N = groups.rows(joined_BG.any(1, keepdim=True).expand_as(joined_BG))
        advantages_N = torch.where(joined_N, centred_N, groups.rows(self.advantage(scores_BG, moments)))
        signal_B = has_signal(experience.of_groups(advantages_N))
        replaced = len(experience.replaced) // experience.recipe.group_size
        metrics.add("reward/groups_without_signal", (~signal_B).sum() + replaced, len(signal_B) + replaced)
        metrics.add_masked("advantage/abs_mean", advantages_N.abs(), scored_N)
        metrics.add("advantage/std", self.all_ranks_moments(advantages_N[scored_N])[1], 1)
        metrics.add("advantage/gain", advantages_N.square().sum(), centred_N.square().sum())
        return advantages_N

    def token_losses(
        self,
        experience: Experience,
        part: Microbatch,
        metrics: StepMetrics,
        on_states: Callable[[PredictingStates], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The objective, the KL and the entropy of each token. Distilled attempts, which have no ratio, are shaped
        instead.

        The KL has no importance weight, as in the GRPO paper, although its tokens may come from an older policy.

        Args:
            experience: see :meth:`losses`.
            part: see :meth:`losses`.
            metrics: what is logged is added here.
            on_states: is called with the hidden states that predict the completion tokens.

        Returns:
            ``loss_NT`` and ``mask_NT``.
        """
        rows = part.rows
        entropies: list[Tensor] = []
        temperature = experience.recipe.sampling.temperature
        logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics, temperature, on_states, entropies.append)
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
        return loss_NT, mask_NT
