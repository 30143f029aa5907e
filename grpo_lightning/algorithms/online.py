"""What all algorithms that learn from rollouts share: checks of options, epochs and minibatches."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.correction import CorrectionMode, SamplerCorrection
from grpo_lightning.algorithms.credit import EpisodeCredit, credited_rewards
from grpo_lightning.algorithms.entropy import EntropyBonus
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.options import check_options, one_of
from grpo_lightning.algorithms.rollout_loss import RolloutLoss
from grpo_lightning.algorithms.rollout_metrics import ROLLOUT_MAXIMA, ROLLOUT_MEANS, add_rollouts, check_verifier_errors
from grpo_lightning.algorithms.top_entropy import top_entropy_advantages
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import Aggregation, KLEstimator
from grpo_lightning.objectives import Objective, ObjectiveName, RatioLevel, ShortForm, check_objective
from grpo_lightning.rollout import Collect, Experience, PromptBatch, RolloutDataModule
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.rollout.scoring import reward_names

log = logging.getLogger(__name__)


class OnlineModule(PolicyModule, ABC):
    """Base of the algorithms that learn from rollouts. A subclass writes :meth:`targets` and :meth:`losses`.

    A step goes one way: the DataModule collects an :class:`~grpo_lightning.rollout.Experience`, one row per attempt;
    ``targets(experience, metrics)`` gives it back with advantages, or whatever else the losses need, by
    ``dataclasses.replace``; then, for each optimizer step and each of its micro-batches,
    ``losses(experience, part, metrics)`` yields losses, whose gradients add up. All passes of models run through
    :class:`self.passes <grpo_lightning.algorithms.passes.Passes>`, ``with_gradient`` or ``without_gradient``;
    :class:`self.rollout_loss <grpo_lightning.algorithms.rollout_loss.RolloutLoss>` applies the objective and
    aggregates. On-policy distillation from a teacher takes some 40 lines: see ``examples/own_algorithm.py``.

    Args:
        beta: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: how that KL is estimated (http://joschu.net/blog/kl-approx.html).
        objective: ``clip`` (:class:`Clip`; with ``ratio_level: sequence`` :class:`GSPO`), ``cispo`` (:class:`CISPO`),
            or a class by its ``class_path``, which has its options in its own ``init_args``. The keys up to
            ``cispo_epsilon_high`` are options of the two names.
        epsilon: clip of the ratio.
        epsilon_high: upper clip, ``None`` for ``epsilon`` (clip-higher of DAPO, arXiv 2503.14476).
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high`` (arXiv 2505.07291).
        ratio_level: ``token``, or ``sequence`` for GSPO (arXiv 2507.18071).
        cispo_epsilon_high: cap of the weight of ``cispo`` (arXiv 2506.13585), which keeps every gradient.
        aggregation: ``grpo`` averages within a completion, then over completions; ``dr_grpo`` divides by
            ``max_new_tokens`` instead; ``dapo`` averages over all tokens of the step; ``bnpo`` over each rank's.
        updates_per_rollout: passes over the rollouts of a step (mu).
        minibatches_per_update: optimizer steps per pass. A rollout's are all made, also beyond ``max_steps``.
        target_kl: make no further pass once ``policy/update_kl``, the KL between the policy that sampled and the
            present one, is above this (nats per token); ``None`` makes them all.
        old_logprobs: where the ratio's denominator comes from when there are several optimizer steps: ``sampler``
            keeps the log-probs of the rollout, ``recompute`` makes a forward pass for them. With one step the policy
            is its own, and neither is needed.
        entropy_bonus: adds the entropy to the objective, with a fixed, scheduled or adapted weight
            (:class:`ScheduledEntropy`, :class:`TargetEntropy`, or a class of your own); ``None`` adds none.
        top_entropy_share: learn only from this share of the step's tokens, those with the largest entropy before the
            update (arXiv 2506.01939); costs a forward pass. ``None`` learns from all.
        sampler_correction: weights the objective of a token by its probability under the policy over that under the
            sampler, which differs with half precision, with another engine, and with older weights. ``token`` caps the
            weight of each token; ``sequence-mask`` gives all tokens of a completion their product, or 0 where that is
            above the cap; ``none`` has no weights. ``auto`` is ``token`` if the first step measures more than 1e-3
            nats per token, else ``none``. With several optimizer steps it needs ``old_logprobs: recompute``; with
            ``sampler`` the ratio itself is taken to the sampler, and ``auto`` is ``none``.
        sampler_cap: cap of that weight.
        mask_truncated: exclude completions that ran into the cap from the loss (arXiv 2503.14476, 3.4).
        max_error_rate: the share of a step's completions that a verifier, or the environment, may break on before the
            run stops.
        episode_credit: what a turn of an episode learns from, with ``data.environment``: ``return``, that of the whole
            episode; ``return_to_go``, from the turn on; ``turn``, the turn's own reward.
        episode_discount: discount of the rewards of later turns, per turn.
    """

    step_means: ClassVar[tuple[str, ...]] = (
        *PolicyModule.step_means, *ROLLOUT_MEANS,
        "advantage/std", "advantage/abs_mean",
        "policy/kl", "policy/entropy_coef", "policy/clip_fraction", "policy/update_kl", "policy/epochs",
        "policy/sampler_gap", "policy/sampler_kl", "policy/sampler_weight", "policy/sampler_cut",
        "time/reference_s",
    )  # fmt: skip
    step_maxima: ClassVar[tuple[str, ...]] = (*ROLLOUT_MAXIMA, "policy/ratio_max")
    step_roots: ClassVar[tuple[str, ...]] = ("advantage/gain",)

    def __init__(
        self,
        *args: Any,
        beta: float = 0.04,
        kl_estimator: KLEstimator = "k3",
        objective: Objective | ObjectiveName = "clip",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        ratio_level: RatioLevel = "token",
        cispo_epsilon_high: float = 5.0,
        aggregation: Aggregation = "grpo",
        updates_per_rollout: int = 1,
        minibatches_per_update: int = 1,
        target_kl: float | None = None,
        old_logprobs: Literal["sampler", "recompute"] = "sampler",
        entropy_bonus: EntropyBonus | None = None,
        top_entropy_share: float | None = None,
        sampler_correction: CorrectionMode = "auto",
        sampler_cap: float = 2.0,
        mask_truncated: bool = False,
        max_error_rate: float = 0.1,
        episode_credit: EpisodeCredit = "return",
        episode_discount: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reward_names = reward_names(self.verifiers)
        self.beta = beta
        self.kl_estimator = kl_estimator
        flat = ShortForm(epsilon, epsilon_high, delta, ratio_level, cispo_epsilon_high)
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_update = minibatches_per_update
        self.target_kl = target_kl
        self.old_logprobs = old_logprobs
        self.entropy_bonus = entropy_bonus
        self.entropy_coef = 0.0
        self.top_entropy_share = top_entropy_share
        if sampler_correction == "auto" and self._ratio_to_sampler:
            sampler_correction = "none"
        self.correction = SamplerCorrection(sampler_correction, sampler_cap)
        self.rollout_loss = RolloutLoss(flat.objective(objective), aggregation, self.correction)
        self.mask_truncated = mask_truncated
        self.max_error_rate = max_error_rate
        self.episode_credit = episode_credit
        self.episode_discount = episode_discount

    def validate_options(self) -> None:
        """Check the options before anything is loaded.

        Raises:
            ConfigError: the first invalid option, in one sentence.
        """
        share = self.top_entropy_share
        beta, target_kl, max_error_rate = self.beta, self.target_kl, self.max_error_rate
        updates, minibatches = self.updates_per_rollout, self.minibatches_per_update
        has_reference = self.policy_config.reference != "none"
        check_options({
            "updates_per_rollout": (updates >= 1, f"must be at least 1, not {updates}"),
            "minibatches_per_update": (minibatches >= 1, f"must be at least 1, not {minibatches}"),
            "kl_estimator": one_of(self.kl_estimator, KLEstimator),
            "aggregation": one_of(self.rollout_loss.aggregation, Aggregation),
            "target_kl": (
                target_kl is None or target_kl > 0, f"must be above 0, or null for no early stop, not {target_kl}"
            ),
            "top_entropy_share": (
                share is None or 0 < share <= 1, f"must be above 0 and at most 1, or null for all tokens, not {share}"
            ),
            "sampler_correction": one_of(self.correction.mode, CorrectionMode),
            "sampler_cap": (self.correction.cap > 0, f"must be above 0, not {self.correction.cap}"),
            "episode_credit": one_of(self.episode_credit, EpisodeCredit),
            "episode_discount": (
                0 <= self.episode_discount <= 1, f"must be from 0 to 1, not {self.episode_discount}"
            ),
            "max_error_rate": (0 <= max_error_rate <= 1, f"must be from 0 to 1, not {max_error_rate}"),
            "beta": (0 <= beta < float("inf"), f"must be a number from 0 on, not {beta}"),
        })  # fmt: skip
        check_options({
            "sampler_correction": (
                self.correction.mode == "none" or not self._ratio_to_sampler,
                f"{self.correction.mode} would correct twice, since several optimizer steps take their ratio to the "
                "sampler: set model.old_logprobs to recompute, or sampler_correction to none"
            ),
            "beta": (beta == 0 or has_reference, "above 0 it needs a reference, but model.policy.reference is none"),
        })  # fmt: skip
        try:
            check_objective(self.rollout_loss.objective)
        except ConfigError as error:
            raise ConfigError(f"model.objective: {error}") from error

    @property
    def has_kl(self) -> bool:
        return self.beta > 0

    @property
    def _one_step(self) -> bool:
        """Whether a rollout is learned in one optimizer step, whose ratio is 1."""
        return self.updates_per_rollout == self.minibatches_per_update == 1

    @property
    def _ratio_to_sampler(self) -> bool:
        """Whether the denominator of the ratio is what the sampler said."""
        return not self._one_step and self.old_logprobs == "sampler"

    @property
    def samples_to_learn(self) -> bool:
        return True

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().on_data_ready(data, stage)
        if stage != "fit":
            return
        if data.rollouts_ahead and not self._ratio_to_sampler:
            self.correction.choose_for_older_weights()
        rows = data.prompts_per_step // self.trainer.world_size * data.group_size
        if self.minibatches_per_update > rows:
            raise ConfigError(
                f"model.minibatches_per_update: {self.minibatches_per_update} optimizer steps cannot share the {rows} "
                "completions that a device has in a step (data.prompts_per_step * data.group_size): lower it"
            )
        if self.target_kl is None:
            steps = self.updates_per_rollout * self.minibatches_per_update
            self.optimization.check_length(self.trainer.max_steps, steps)
        if data.sampling.temperature == 0:
            raise ConfigError("data.sampling.temperature: greedy completions of a group are all equal: set it above 0")
        if data.sampling.truncates:
            log.warning(
                "data.sampling: top_k, top_p and min_p make training samples off-policy: the loss takes the whole "
                "distribution's log-probs; policy/truncation_gap shows the difference"
            )

    def credited(self, experience: Experience, rewards_N: Tensor | None = None) -> Tensor:
        """``[N]``: what each row learns from: its reward, and what following attempts or turns credit it with."""
        return credited_rewards(experience, rewards_N, self.episode_credit, self.episode_discount)

    # -- what a subclass writes -------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """The experience with what the update works towards, all of it fixed before the first optimizer step.

        Args:
            experience: as collected. ``counted_N`` leaves truncated rows out under ``mask_truncated``.
            metrics: what is logged is added here.
        """

    @abstractmethod
    def losses(self, experience: Experience, part: Microbatch, metrics: StepMetrics) -> Iterator[Tensor]:
        """The losses of a micro-batch: see :data:`grpo_lightning.algorithms.update.Losses`.

        Args:
            experience: what :meth:`targets` returned, with what the loss of this optimizer step is divided by.
            part: ``part.rows`` are rows of the experience, ``part.tokens`` their tokens.
            metrics: what is logged is added here.
        """

    # -- one iteration ----------------------------------------------------------------------------------------------

    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience:
        """Attempts of the current policy."""
        return collect(prompts)

    def training_step(self, batch: Experience, batch_idx: int) -> None:
        metrics = self.step_metrics(*(f"reward/{name}" for name in self.reward_names))
        add_rollouts(batch, metrics, self.reward_names)
        check_verifier_errors(batch, self, self.max_error_rate)
        replaced = sum(len(attempt.completion.token_ids) for attempt in batch.replaced)
        metrics.add("total/rollout_tokens", batch.tokens.completion_lengths_N.sum() + replaced)
        if self.mask_truncated:
            batch = replace(batch, counted_N=batch.counted_N & ~batch.truncated_N)
        if self.entropy_bonus is not None:
            self.entropy_coef = self.entropy_bonus.coefficient(batch.recipe.step)
            metrics.add("policy/entropy_coef", self.entropy_coef, 1)
        if self.correction.chosen is None:
            # Over all ranks, so that all of them choose alike.
            gap, compared = self.all_ranks_sum(*self.passes.sampler_gap(batch))
            self.correction.choose(gap / max(compared, 1))
        self.free_gradients()  # targets may propagate gradients back; a subclass's hook may have left others
        experience = self.targets(batch, metrics)
        if self.top_entropy_share is not None:
            with self.timed(metrics, "reference"):
                experience = top_entropy_advantages(experience, self.passes, self, self.top_entropy_share)
        with self.timed(metrics, "update"):
            measured = self._update(experience, metrics)
        kl, tokens = measured or self.passes.update_kl(experience)
        metrics.add("policy/update_kl", kl, tokens)
        logged = self.finish_step(experience, metrics)
        if self.entropy_bonus is not None and "policy/entropy" in logged:
            self.entropy_bonus.measured(logged["policy/entropy"])

    def _update(self, experience: Experience, metrics: StepMetrics) -> tuple[Tensor, Tensor] | None:
        """All optimizer steps of a rollout; returns :meth:`Passes.update_kl` if it was measured on the way."""
        measured, minibatches = None, self.minibatches_per_update
        # Its own generator, so that a resumed run shuffles as the uninterrupted one did.
        seed = row_seed(experience.recipe.seed, "minibatches", self.global_step)
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(self.updates_per_rollout):
            count = len(experience)
            order_N = torch.randperm(count, generator=generator) if minibatches > 1 else torch.arange(count)
            for number, rows_N in enumerate(torch.tensor_split(order_N.to(self.device), minibatches)):
                is_first = epoch == 0 and number == 0
                counted = self.rollout_loss.counted(experience, rows_N, self, is_first)
                passed = rows_N[self.rows_to_learn(counted)[rows_N]]
                learned, rows = rows_N[experience.learned_N[rows_N]], experience.tokens
                self.count_trained(metrics, rows.lengths_N[learned], rows.completion_lengths_N[learned])
                losses = partial(self.losses, counted, metrics=metrics)
                attempts = [experience.attempts[row] for row in learned.tolist()]
                # What `targets` has propagated back belongs to the first step.
                self.optimizer_step_on(rows, passed, losses, metrics, attempts, keep_gradients=is_first)
            if self.target_kl is not None:
                measured = self.passes.update_kl(experience)
                # Over all ranks, so that all of them decide alike.
                kl, tokens = self.all_ranks_sum(*measured)
                if kl > self.target_kl * tokens:
                    break
        metrics.add("policy/epochs", epoch + 1, 1)
        return measured

    def rows_to_learn(self, experience: Experience) -> Tensor:
        """True for the rows whose :meth:`losses` an optimizer step needs; ``experience.is_first_step`` tells which."""
        return experience.learned_N

    def with_frozen_logprobs(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """The experience with ``old_NT`` and ``reference_NT`` of the learned rows, where the losses need them."""
        old_NT = reference_NT = None
        with self.timed(metrics, "reference"):
            if self.beta > 0:
                reference_NT = self.passes.logprobs(experience, experience.learned_N, reference=True)
            if not self._one_step:
                old_NT = experience.sampler_logprobs_NT
                if self.old_logprobs == "recompute":
                    old_NT = self.passes.logprobs(experience, experience.learned_N)
        return replace(experience, old_NT=old_NT, reference_NT=reference_NT)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampler_correction"] = self.correction.chosen
        if self.entropy_bonus is not None:
            checkpoint["entropy_bonus"] = self.entropy_bonus.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.correction.chosen is None:
            self.correction.chosen = checkpoint.get("sampler_correction")
        state = checkpoint.get("entropy_bonus")
        if self.entropy_bonus is not None and state:
            self.entropy_bonus.load(state)
