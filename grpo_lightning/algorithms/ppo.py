"""PPO: proximal policy optimization with a learned critic, arXiv 1707.06347, on token-level values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.algorithms.credit import credited_rewards
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.algorithms.options import check_options
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import (
    Aggregation,
    KLEstimator,
    adapted_kl_coef,
    explained_variance,
    gae,
    kl_divergence,
    length_mask,
    masked_std,
    masked_sum,
    token_rewards,
    value_loss,
    whiten,
)
from grpo_lightning.models.value import Critic, CriticForm
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.speed.shared_prompt import PredictingStates


@dataclass
class KLController:
    """Moves the coefficient of the KL penalty so that the KL comes to a target. Ziegler et al. 2019, arXiv 1909.08593.

    Args:
        target: KL to the reference, nats per completion.
        horizon: completions over which the coefficient moves by up to a fifth.
    """

    target: float = 6.0
    horizon: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class ValuedExperience(Experience):
    """An experience with a critic's values.

    Args:
        values_NT: the critic's values of the tokens, before the update.
        returns_NT: the targets of the values.
    """

    values_NT: Tensor
    returns_NT: Tensor


class PPOModule(OnlineModule):
    """Proximal policy optimization: a critic's values instead of GRPO's groups.

    ``L = - E_t[ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) ] + value_coef * 1/2 E_t[ (V - R)^2 ]``, the second
    part clipped too, with the advantages ``A`` of GAE (arXiv 1506.02438), ``R = A + V``, and token rewards made of the
    verifier's, on the last token, and ``- beta * KL`` to the reference, on each (Ziegler et al. 2019, arXiv
    1909.08593). The equations are in :mod:`grpo_lightning.functional.gae`. The options that it shares with GRPO are
    those of :class:`OnlineModule`; ``beta`` is the (first) coefficient of the KL, which is in the rewards here, not in
    the loss.

    Not implemented from the PPO paper: the penalty on the KL of the update (``target_kl`` stops it instead), and the
    entropy bonus. A group has no meaning here: ``group_size`` completions per prompt are as many episodes. Under
    refinement (``in_context``) a further attempt is an episode that starts after the feedback, and the one before it
    has the credited reward. ``distill`` is refused: its tokens were not sampled under the prompt that they are learned
    under.

    Args:
        gamma: discount of a token.
        lam: lambda of GAE: 1 trusts the rewards alone, 0 the critic alone.
        adaptive_kl: adapt the coefficient of the KL; ``None`` keeps it at ``beta``.
        whiten_advantages: give those of a step, over all ranks, mean 0 and std 1.
        value_epsilon: how far a value may move from what it was before the update; ``None`` for no limit.
        value_coef: weight of the critic's loss. It matters to a shared trunk, and hardly to a critic with
            separate weights, whose gradient is clipped separately.
        value_lr: learning rate of the critic: of its head, and of its trunk where that is not the policy's; ``None``
            for the optimizer's. A schedule scales both.
        bootstrap_truncated: treat a completion that ran into the cap as unfinished: use the critic's value there
            instead of the verifier's reward (arXiv 1712.00378). Default: the episode ended there, unless
            ``mask_truncated`` excludes it.
        critic: ``shared`` is a value head on the policy's trunk; ``adapter`` a second LoRA adapter with a head on the
            policy's base; ``separate`` a second model, which costs its full memory.
        critic_path: what a ``separate`` critic is loaded from; ``None`` for where the policy comes from.
        critic_frozen: train only the head of a ``separate`` critic.
        critic_warmup_steps: this many first optimizer steps train only the critic (only its head, where it is
            ``shared``).
    """

    loss_names = ("policy/loss", "value/loss")
    step_means = (
        *OnlineModule.step_means,
        "policy/kl_per_completion", "policy/kl_coef", "advantage/mean", "return/mean",
        "value/loss", "value/mean", "value/explained_variance", "value/clip_fraction",
        "optim/value_grad_norm", "time/value_s",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        kl_estimator: KLEstimator = "k1",
        aggregation: Aggregation = "dapo",
        updates_per_rollout: int = 2,
        gamma: float = 1.0,
        lam: float = 0.95,
        adaptive_kl: KLController | None = None,
        whiten_advantages: bool = True,
        value_epsilon: float | None = 0.2,
        value_coef: float = 0.1,
        value_lr: float | None = None,
        bootstrap_truncated: bool = False,
        critic: CriticForm = "shared",
        critic_path: str | None = None,
        critic_frozen: bool = False,
        critic_warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            kl_estimator=kl_estimator,
            aggregation=aggregation,
            updates_per_rollout=updates_per_rollout,
            **kwargs,
        )
        self.gamma = gamma
        self.lam = lam
        self.adaptive_kl = adaptive_kl
        self.kl_coef = self.beta
        self.whiten_advantages = whiten_advantages
        self.value_epsilon = value_epsilon
        self.value_coef = value_coef
        self.value_lr = value_lr
        self.bootstrap_truncated = bootstrap_truncated
        self.critic: Critic
        self.critic_form = critic
        self.critic_path = critic_path
        self.critic_frozen = critic_frozen
        self.critic_warmup_steps = critic_warmup_steps
        self.validate_options()

    def validate_options(self) -> None:
        super().validate_options()
        epsilon, lr = self.value_epsilon, self.value_lr
        adaptive, has_lora = self.adaptive_kl, self.policy_config.has_lora
        check_options({
            "gamma": (0 <= self.gamma <= 1, f"must be from 0 to 1, not {self.gamma}"),
            "lam": (0 <= self.lam <= 1, f"must be from 0 to 1, not {self.lam}"),
            "adaptive_kl": (adaptive is None or self.beta > 0, "starts from beta: set model.beta above 0"),
            "adaptive_kl.target": (adaptive is None or adaptive.target > 0, "must be above 0"),
            "adaptive_kl.horizon": (adaptive is None or adaptive.horizon > 0, "must be above 0"),
            "value_epsilon": (epsilon is None or epsilon > 0, "must be above 0, or null for no clip"),
            "value_coef": (self.value_coef > 0, f"must be above 0, not {self.value_coef}"),
            "value_lr": (lr is None or lr > 0, "must be above 0, or null for the optimizer's"),
            "bootstrap_truncated": (
                not (self.bootstrap_truncated and self.mask_truncated),
                "mask_truncated leaves those completions out: set one of the two",
            ),
            "critic": (self.critic_form != "adapter" or has_lora, "adapter needs model.policy.lora; use shared"),
            "critic_path": (self.critic_path is None or self.critic_form == "separate", "needs critic: separate"),
            "critic_frozen": (not self.critic_frozen or self.critic_form == "separate", "needs critic: separate"),
            "critic_warmup_steps": (self.critic_warmup_steps >= 0, "must not be negative"),
        })  # fmt: skip

    # -- set-up -----------------------------------------------------------------------------------------------------

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().on_data_ready(data, stage)
        refinement = data.refinement if stage == "fit" else None
        if refinement is not None and refinement.mode == "distill":
            raise ConfigError(
                "data.refinement.mode: distill learns tokens under a prompt that they were not sampled under, where a "
                "critic's advantages mean nothing: use in_context with PPOModule"
            )

    def configure_model(self) -> None:
        """Load the policy, and for training the critic: evaluation needs none."""
        super().configure_model()
        if self.trainer.state.fn == "fit" and not hasattr(self, "critic"):
            self.critic = Critic(self.policy, self.critic_form, self.critic_path, self.critic_frozen)

    def trained_sides(self) -> dict[str, list[nn.Parameter]]:
        return {"": self.policy.trainable_parameters(), "value_": self.critic.trainable_parameters()}

    def optimizer_parameters(self) -> Any:
        value: dict[str, Any] = {} if self.value_lr is None else {"lr": self.value_lr}
        policy, critic = self.trained_sides().values()
        return [{"params": policy}, {"params": critic} | value]

    @property
    def _warms_up(self) -> bool:
        return self.global_step < self.critic_warmup_steps

    @property
    def shares_prompts(self) -> bool:
        """Only where the critic reads the states of the policy's pass: a separate pass runs each row as a whole."""
        return super().shares_prompts and self.critic_form == "shared" and not self._warms_up

    def resting_parameters(self) -> list[nn.Parameter]:
        return self.policy.trainable_parameters() if self._warms_up else []

    # -- one iteration ----------------------------------------------------------------------------------------------

    def training_step(self, batch: Experience, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        if self.adaptive_kl is not None:
            kl, completions = self._seen_kl
            target, horizon = self.adaptive_kl.target, self.adaptive_kl.horizon
            if math.isfinite(kl):
                self.kl_coef = adapted_kl_coef(self.kl_coef, kl, target=target, horizon=horizon, samples=completions)

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """Token rewards, values and advantages of the completions that count."""
        counted_N, truncated_N = experience.counted_N, experience.truncated_N
        experience = self.with_frozen_logprobs(replace(experience, learned_N=counted_N), metrics)
        lengths_N, width = experience.tokens.completion_lengths_N, experience.sampler_logprobs_NT.shape[1]
        with self.timed(metrics, "value"), self.critic.trunk() as lm:
            read = partial(self.critic.state_values, lm)
            values_NS = self.passes.without_gradient(experience, counted_N, read, width + 1)
        mask_NT = length_mask(lengths_N, width) & counted_N[:, None]
        values_NT, rewards_N = values_NS[:, :-1], credited_rewards(experience).nan_to_num(0.0)
        bootstrap_N = None
        if self.bootstrap_truncated:
            bootstrap_N = torch.where(truncated_N, values_NS.gather(1, lengths_N[:, None])[:, 0], 0)
            rewards_N = torch.where(truncated_N, 0, rewards_N)
        kl_NT = self._penalised_kl(experience, mask_NT, metrics)
        rewards_NT = token_rewards(rewards_N, kl_NT, mask_NT, self.kl_coef)
        raw_NT = gae(rewards_NT, values_NT, mask_NT, gamma=self.gamma, lam=self.lam, bootstrap_N=bootstrap_N)
        advantages_NT, returns_NT = raw_NT, raw_NT + values_NT
        if self.whiten_advantages:
            mean, std = self.all_ranks_moments(raw_NT[mask_NT])
            advantages_NT = whiten(raw_NT, mask_NT, mean=mean, std=std)
        metrics.add_masked("advantage/mean", raw_NT, mask_NT)
        metrics.add_masked("advantage/abs_mean", advantages_NT.abs(), mask_NT)
        metrics.add("advantage/std", masked_std(advantages_NT, mask_NT), 1)
        metrics.add("advantage/gain", advantages_NT.square().sum(), raw_NT.square().sum())
        metrics.add_masked("value/mean", values_NT, mask_NT)
        metrics.add_masked("return/mean", returns_NT, mask_NT)
        weight = masked_std(returns_NT, mask_NT).square() * mask_NT.sum()
        metrics.add("value/explained_variance", explained_variance(values_NT, returns_NT, mask_NT) * weight, weight)
        return ValuedExperience(
            **vars(replace(experience, advantages=advantages_NT)), values_NT=values_NT, returns_NT=returns_NT
        )

    def _penalised_kl(self, experience: Experience, mask_NT: Tensor, metrics: StepMetrics) -> Tensor:
        sampled_NT, counted_N = experience.sampler_logprobs_NT, experience.counted_N
        old_NT, reference_NT = experience.old_NT, experience.reference_NT
        if reference_NT is None:
            return torch.zeros_like(sampled_NT)
        sampled_NT = sampled_NT if old_NT is None else old_NT
        kl_NT = kl_divergence(sampled_NT, reference_NT, self.kl_estimator, mask_NT)
        metrics.add_masked("policy/kl", kl_NT, mask_NT)
        metrics.add("policy/kl_per_completion", masked_sum(kl_NT, mask_NT), counted_N.sum())
        metrics.add("policy/kl_coef", self.kl_coef, 1)
        if self.adaptive_kl is not None:
            kl, completions = self.all_ranks_sum(masked_sum(kl_NT, mask_NT), counted_N.sum())
            self._seen_kl = kl / max(completions, 1), completions
        return kl_NT

    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The policy's loss and the critic's: as one where they share the trunk, else one after the other."""
        if self.critic_form == "shared" and not self._warms_up:
            states: list[PredictingStates] = []
            policy_loss, mask_NT = self._policy_loss(experience, part, metrics, states)
            values_NT = states[0].spread(self.critic.head(states[0].hidden_MD), part.tokens)
            yield policy_loss + self._value_loss(experience, part, metrics, values_NT, mask_NT)
            return
        if not self._warms_up:
            policy_loss, _ = self._policy_loss(experience, part, metrics, [])
            yield policy_loss
        with self.critic.trunk() as lm:
            values_NS = self.critic.state_values(lm, part.tokens, train_trunk=self.critic_form != "shared")
            mask_NT = length_mask(part.tokens.completion_lengths_N)
            yield self._value_loss(experience, part, metrics, values_NS[:, :-1], mask_NT)

    def _policy_loss(
        self, experience: Experience, part: Microbatch, metrics: StepMetrics, states: list[PredictingStates]
    ) -> tuple[Tensor, Tensor]:
        temperature = experience.recipe.sampling.temperature
        logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics, temperature, states.append)
        terms = self.rollout_loss.terms(experience, part, metrics, logprobs_NT, mask_NT)
        loss = self.rollout_loss.aggregate(experience, terms.loss_NT, mask_NT)
        return self.add_loss(metrics, "policy/loss", loss), mask_NT

    def _value_loss(
        self, experience: Experience, part: Microbatch, metrics: StepMetrics, values_NT: Tensor, mask_NT: Tensor
    ) -> Tensor:
        rows, width = part.rows, values_NT.shape[1]
        assert isinstance(experience, ValuedExperience)
        old_NT, returns_NT = experience.values_NT[rows, :width], experience.returns_NT[rows, :width]
        terms = value_loss(values_NT, old_NT, returns_NT, mask_NT, value_epsilon=self.value_epsilon)
        metrics.add_masked("value/clip_fraction", terms.clipped_NT.float(), mask_NT)
        loss = self.rollout_loss.aggregate(experience, terms.loss_NT, mask_NT)
        return self.value_coef * self.add_loss(metrics, "value/loss", loss)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_coef"] = self.kl_coef

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.adaptive_kl is not None:
            self.kl_coef = checkpoint["kl_coef"]
