"""PPO: proximal policy optimization with a learned critic, arXiv 1707.06347, on token-level values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithms.credit import credited_rewards, following_turns
from grpo_lightning.algorithms.critic import CriticModule
from grpo_lightning.algorithms.episodes import Episodes, Lambdas, ValuedExperience
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.options import check_options
from grpo_lightning.algorithms.value_pretraining import (
    ValuedRow,
    ValuePretraining,
    log_gap,
    pretrain_values,
    stored_rollouts,
)
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import (
    Aggregation,
    KLEstimator,
    adapted_kl_coef,
    kl_divergence,
    length_adaptive_lambda,
    length_mask,
    masked_sum,
    token_rewards,
    whiten,
)
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.rollout.restored import StoredRollouts


@dataclass
class KLController:
    """Moves the coefficient of the KL penalty so that the KL comes to a target. Ziegler et al. 2019, arXiv 1909.08593.

    Args:
        target: KL to the reference, nats per completion.
        horizon: completions over which the coefficient moves by up to a fifth.
    """

    target: float = 6.0
    horizon: float = 10_000.0


class PPOModule(CriticModule):
    """Proximal policy optimization: a critic's values instead of GRPO's groups.

    ``L = - E_t[ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) ] + value_coef * 1/2 E_t[ (V - R)^2 ]``, the second
    part clipped too, with the advantages ``A`` of GAE (arXiv 1506.02438), ``R = A + V``, and token rewards made of the
    verifier's, on the last token, and ``- beta * KL`` to the reference, on each (Ziegler et al. 2019, arXiv
    1909.08593). The equations are in :mod:`grpo_lightning.functional.gae`. The options of the critic are those of
    :class:`CriticModule`, and those that it shares with GRPO, one pass over the rollouts by default, those of
    :class:`OnlineModule`; ``beta`` is the (first) coefficient of the KL, which is in the rewards here, not in the loss.

    Not implemented from the PPO paper: the penalty on the KL of the update (``target_kl`` stops it instead). A group
    has no meaning here: ``group_size`` completions per prompt are as many episodes. Under refinement (``in_context``) a
    further attempt is an episode that starts after the feedback, and the one before it has the credited reward; with
    an environment, likewise, a turn starts after what has been said, and has its credit (``episode_credit``), or is
    followed by the next turn (``turn_lam``).
    ``distill`` is refused: its tokens were not sampled under the prompt that they are learned under.

    Args:
        gamma: discount of a token.
        lam: lambda of GAE: 1 trusts the rewards alone, 0 the critic alone.
        lam_alpha: gives each completion a lambda by its length, ``1 - 1 / (lam_alpha * length)``, at least 0, instead
            of ``lam`` (VAPO, arXiv 2504.05118, which has 0.05); ``None`` keeps ``lam``.
        value_lam: lambda of the critic's targets, within and across turns: 1, the returns themselves, in VC-PPO (arXiv
            2503.01491) and VAPO; ``None`` for those of the advantages.
        value_pretraining: fit the critic to the returns of stored rollouts before the first step; ``None`` starts with
            values of 0. To fit it to rollouts of the run's own first steps, set ``critic_warmup_steps``.
        turn_lam: makes the turns of a conversation one episode, with this lambda from turn to turn, and
            ``episode_discount`` as their discount (bi-level GAE, arXiv 2510.16907). It needs ``data.environment`` and
            ``episode_credit: return_to_go``, which it estimates. ``None``: each turn is an episode with its credit.
        adaptive_kl: adapt the coefficient of the KL; ``None`` keeps it at ``beta``.
        whiten_advantages: give those of a step, over all ranks, mean 0 and std 1.
        bootstrap_truncated: treat a completion that ran into the cap as unfinished: use the critic's value there
            instead of the verifier's reward (arXiv 1712.00378). Default: the episode ended there, unless
            ``mask_truncated`` excludes it.
    """

    step_means = (
        *CriticModule.step_means,
        "policy/kl_per_completion", "policy/kl_coef", "advantage/mean", "return/mean",
        "value/mean", "value/explained_variance",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        kl_estimator: KLEstimator = "k1",
        aggregation: Aggregation = "dapo",
        gamma: float = 1.0,
        lam: float = 0.95,
        lam_alpha: float | None = None,
        value_lam: float | None = None,
        turn_lam: float | None = None,
        value_pretraining: ValuePretraining | None = None,
        adaptive_kl: KLController | None = None,
        whiten_advantages: bool = True,
        bootstrap_truncated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, kl_estimator=kl_estimator, aggregation=aggregation, **kwargs)
        self.gamma = gamma
        self.lam = lam
        self.lam_alpha = lam_alpha
        self.value_lam = value_lam
        self.turn_lam = turn_lam
        self.value_pretraining = value_pretraining
        self._stored: StoredRollouts
        self.adaptive_kl = adaptive_kl
        self.kl_coef = self.beta
        self.whiten_advantages = whiten_advantages
        self.bootstrap_truncated = bootstrap_truncated
        self.validate_options()

    def validate_options(self) -> None:
        super().validate_options()
        adaptive, alpha, value_lam, turn_lam = self.adaptive_kl, self.lam_alpha, self.value_lam, self.turn_lam
        check_options({
            "gamma": (0 <= self.gamma <= 1, f"must be from 0 to 1, not {self.gamma}"),
            "lam": (0 <= self.lam <= 1, f"must be from 0 to 1, not {self.lam}"),
            "lam_alpha": (alpha is None or alpha > 0, f"must be above 0, or null for lam, not {alpha}"),
            "value_lam": (
                value_lam is None or 0 <= value_lam <= 1, f"must be from 0 to 1, or null for lam, not {value_lam}"
            ),
            "turn_lam": (
                turn_lam is None or 0 <= turn_lam <= 1,
                f"must be from 0 to 1, or null for turns that are episodes, not {turn_lam}",
            ),
            "adaptive_kl": (adaptive is None or self.beta > 0, "starts from beta: set model.beta above 0"),
            "adaptive_kl.target": (adaptive is None or adaptive.target > 0, "must be above 0"),
            "adaptive_kl.horizon": (adaptive is None or adaptive.horizon > 0, "must be above 0"),
            "bootstrap_truncated": (
                not (self.bootstrap_truncated and self.mask_truncated),
                "mask_truncated leaves those completions out: set one of the two",
            ),
        })  # fmt: skip
        if self.value_pretraining is not None:
            self.value_pretraining.validate()
        check_options({
            "episode_credit": (
                turn_lam is None or self.episode_credit == "return_to_go",
                f"turn_lam estimates the return to go of each turn: set it to return_to_go, not {self.episode_credit}",
            ),
            "mask_truncated": (
                turn_lam is None or not self.mask_truncated,
                "leaves out last turns, whose values turn_lam needs for the turns before them: set bootstrap_truncated",
            ),
        })  # fmt: skip

    @property
    def _rows_apart(self) -> bool:
        return self.turn_lam is None

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
        if stage == "fit" and self.turn_lam is not None and data.environment is None:
            raise ConfigError("model.turn_lam: there are turns only with data.environment: set it, or remove turn_lam")
        if stage == "fit" and self.value_pretraining is not None:
            self._stored = stored_rollouts(self.value_pretraining, data, has_kl=self.beta > 0)
            self._stored.check()

    def on_train_start(self) -> None:
        super().on_train_start()
        options = self.value_pretraining
        # A run that continues, from a checkpoint or with the same trainer, has a critic that was fitted already.
        if options is None or self.trainer.ckpt_path is not None or self.trainer.global_step:
            return
        rows: list[ValuedRow] = []
        with self.trainer.precision_plugin.train_step_context():
            for experience in self._stored.experiences(self.policy):
                if not rows:
                    gap, tokens = self.passes.sampler_gap(experience)
                    if self.trainer.is_global_zero:
                        log_gap(float(gap / tokens), options.rollouts)
                rows += self._valued(experience)
            if not rows:
                raise ConfigError(
                    f"model.value_pretraining.rollouts: no rollout of {options.rollouts} has a return: name another run"
                )
            pretrain_values(self, rows, options, self._stored.recipe.seed)

    def _valued(self, experience: Experience) -> list[ValuedRow]:
        """The counted rows, without the episodes that were cut off where these are not taken to have ended."""
        attempts, root_rows = experience.attempts, experience.root_rows
        cut_off = set()
        if self.bootstrap_truncated or self.mask_truncated:
            cut_off = {root_rows[row] for row in experience.truncated_N.nonzero()[:, 0].tolist()}
        is_known_N = torch.tensor([root not in cut_off for root in root_rows], device=self.device)
        counted_N, metrics = experience.counted_N & is_known_N, self.step_metrics()
        experience = replace(experience, counted_N=counted_N, learned_N=counted_N)
        if self.beta > 0:
            experience = self.with_frozen_logprobs(experience, metrics)
        returns_NT = self._episodes(experience, metrics).returns()
        return [
            ValuedRow(
                attempts[row].conversation, attempts[row].completion.token_ids,
                returns_NT[row, : len(attempts[row].completion.token_ids)].tolist(),
            )
            for row in counted_N.nonzero()[:, 0].tolist()
        ]  # fmt: skip

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
        counted_N = experience.counted_N
        experience = self.with_frozen_logprobs(replace(experience, learned_N=counted_N), metrics)
        episodes = self._episodes(experience, metrics)
        values_NS = self.values(experience, episodes, metrics)
        mask_NT, values_NT = episodes.mask_NT, values_NS[:, : episodes.mask_NT.shape[1]]
        raw_NT, returns_NT = episodes.targets(values_NS)
        advantages_NT = raw_NT
        if self.whiten_advantages:
            mean, std = self.all_ranks_moments(raw_NT[mask_NT])
            advantages_NT = whiten(raw_NT, mask_NT, mean=mean, std=std)
        metrics.add_masked("advantage/mean", raw_NT, mask_NT)
        metrics.add_masked("advantage/abs_mean", advantages_NT.abs(), mask_NT)
        metrics.add("advantage/std", self.all_ranks_moments(advantages_NT[mask_NT])[1], 1)
        metrics.add("advantage/gain", advantages_NT.square().sum(), raw_NT.square().sum())
        metrics.add_masked("value/mean", values_NT, mask_NT)
        metrics.add_masked("return/mean", returns_NT, mask_NT)
        explained = self.all_ranks_explained_variance((returns_NT - values_NT)[mask_NT], returns_NT[mask_NT])
        metrics.add("value/explained_variance", explained, 1)
        return ValuedExperience(
            **vars(replace(experience, advantages=advantages_NT)), values_NT=values_NT, returns_NT=returns_NT
        )

    def _episodes(self, experience: Experience, metrics: StepMetrics) -> Episodes:
        """The completions that count, with the verifiers' rewards and the penalty."""
        lengths_N, width = experience.tokens.completion_lengths_N, experience.sampler_logprobs_NT.shape[1]
        mask_NT = length_mask(lengths_N, width) & experience.counted_N[:, None]
        is_chained = self.turn_lam is not None
        rewards_N = credited_rewards(experience, credit="turn") if is_chained else self.credited(experience)
        rewards_N = rewards_N.nan_to_num(0.0)
        unfinished_N = experience.truncated_N if self.bootstrap_truncated else None
        if unfinished_N is not None:
            rewards_N = torch.where(unfinished_N, 0, rewards_N)
        kl_NT = self._penalised_kl(experience, mask_NT, metrics)
        rewards_NT = token_rewards(rewards_N, kl_NT, mask_NT, self.kl_coef)
        tokens = experience.tokens if unfinished_N is None else experience.tokens.with_end()
        token_lam: float | Tensor = self.lam
        if self.lam_alpha is not None:
            token_lam = length_adaptive_lambda(lengths_N, self.lam_alpha)
        value_lam = self.value_lam
        return Episodes(
            tokens, rewards_NT, mask_NT, unfinished_N, lengths_N, self.gamma,
            lambdas=Lambdas(token_lam, self.turn_lam or 0.0),
            value_lambdas=None if value_lam is None else Lambdas(value_lam, value_lam),
            next_N=following_turns(experience) if is_chained else None,
            turn_gamma=self.episode_discount,
        )  # fmt: skip

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

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_coef"] = self.kl_coef

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.adaptive_kl is not None:
            self.kl_coef = checkpoint["kl_coef"]
