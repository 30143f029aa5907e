"""What learns from rollouts, whatever its objective: checks, frozen passes, epochs and minibatches, measurements."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.algorithms.rollout_metrics import ROLLOUT_MAXIMA, ROLLOUT_MEANS, add_rollouts
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.functional import Aggregation, KLEstimator, aggregate, kl_divergence, length_mask, masked_sum
from grpo_lightning.objectives import (
    Objective,
    ObjectiveName,
    PolicyLossTerms,
    RatioLevel,
    ShortForm,
    check_objective,
)  # fmt: skip
from grpo_lightning.rollout import Collect, Experience, PromptBatch, RolloutDataModule
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.rollout.scoring import reward_names
from grpo_lightning.types import TokenRows

log = logging.getLogger(__name__)


class VerifierError(RunError):
    """A verifier broke on too many completions of one step."""


class OnlineModule(PolicyModule, ABC):
    """Base of the algorithms that learn from rollouts. A subclass writes :meth:`targets` and :meth:`losses`.

    A step goes one way: the DataModule collects an :class:`~grpo_lightning.rollout.Experience`, one row per attempt;
    ``targets(experience, metrics)`` gives it back with advantages, or whatever else the losses need, by
    ``dataclasses.replace``; then, for each optimizer step and each of its micro-batches,
    ``losses(experience, part, metrics)`` yields losses, whose gradients add up. All passes of a model run through
    :meth:`policy_pass`, with gradients, and :meth:`pass_over`, without. On-policy distillation from a teacher takes
    some 40 lines: see ``examples/own_algorithm.py``.

    Args:
        beta: weight of the KL to the reference. With 0 there is no reference.
        kl_estimator: of that KL (http://joschu.net/blog/kl-approx.html).
        objective: ``clip`` (:class:`Clip`; with ``ratio_level: sequence`` :class:`GSPO`), ``cispo`` (:class:`CISPO`),
            or a class by its ``class_path``, which has its options in its own ``init_args``. The keys up to
            ``cispo_epsilon_high`` are options of the two names.
        epsilon: clip of the ratio.
        epsilon_high: upper clip, ``None`` for ``epsilon`` (clip-higher of DAPO, arXiv 2503.14476).
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high`` (arXiv 2505.07291).
        ratio_level: ``token``, or ``sequence`` for GSPO (arXiv 2507.18071).
        cispo_epsilon_high: cap of the weight of ``cispo`` (arXiv 2506.13585), which clips it and keeps every gradient.
        aggregation: ``grpo`` averages within a completion, then over completions; ``dr_grpo`` divides by
            ``max_new_tokens`` instead; ``dapo`` averages over all tokens of the step; ``bnpo`` over each rank's.
        updates_per_rollout: passes over the rollouts of a step (mu).
        minibatches_per_update: optimizer steps a pass.
        target_kl: make no further pass once ``policy/update_kl``, the KL between the policy that sampled and the
            present one, is above this (nats a token); ``None`` makes them all.
        old_logprobs: where the ratio's denominator comes from when there are several optimizer steps: ``sampler``
            keeps the log-probs of the rollout, ``recompute`` makes a forward pass for them. With one step the policy
            is its own, and neither is needed.
        mask_truncated: leave completions that ran into the cap out of the loss (arXiv 2503.14476, section 3.4).
        max_error_rate: the share of a step's completions that a verifier may break on before the run stops.
    """

    step_means: ClassVar[tuple[str, ...]] = (
        *PolicyModule.step_means, *ROLLOUT_MEANS,
        "advantage/std", "advantage/abs_mean",
        "policy/kl", "policy/clip_fraction", "policy/update_kl", "policy/sampler_gap", "policy/epochs",
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
        mask_truncated: bool = False,
        max_error_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.kl_estimator = kl_estimator
        flat = ShortForm(epsilon, epsilon_high, delta, ratio_level, cispo_epsilon_high)
        self.objective = flat.objective(objective)
        self.aggregation = aggregation
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_update = minibatches_per_update
        self.target_kl = target_kl
        self.old_logprobs = old_logprobs
        self.mask_truncated = mask_truncated
        self.max_error_rate = max_error_rate

    def validate_options(self) -> None:
        """Find what is wrong with the options before anything is loaded.

        Raises:
            ConfigError: the first of them, in one sentence.
        """
        for name in ("updates_per_rollout", "minibatches_per_update"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, not {getattr(self, name)}")
        if self.target_kl is not None and self.target_kl <= 0:
            raise ConfigError(f"model.target_kl: must be above 0, or null for no early stop, not {self.target_kl}")
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError(f"model.max_error_rate: must be from 0 to 1, not {self.max_error_rate}")
        if self.beta > 0 and self.policy_config.reference == "none":
            raise ConfigError("model.beta: above 0 it needs a reference, but model.policy.reference is none")
        if self.beta < 0:
            raise ConfigError(f"model: beta must not be negative, but is {self.beta}")
        one = torch.zeros(1, 1)
        try:
            kl_divergence(one, one, self.kl_estimator)
            aggregate(one, one.bool(), aggregation=self.aggregation, sequences=1, tokens=1, max_tokens=1)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
        try:
            check_objective(self.objective)
        except ConfigError as error:
            raise ConfigError(f"model.objective: {error}") from error

    @property
    def wants_reference(self) -> bool:
        return self.beta > 0

    @property
    def samples_to_learn(self) -> bool:
        return True

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().on_data_ready(data, stage)
        if stage != "fit":
            return
        rows = data.prompts_per_step // self.trainer.world_size * data.group_size
        if self.minibatches_per_update > rows:
            raise ConfigError(
                f"model.minibatches_per_update: {self.minibatches_per_update} optimizer steps cannot share the {rows} "
                "completions that a device has in a step (data.prompts_per_step * data.group_size): lower it"
            )
        if data.sampling.temperature == 0:
            raise ConfigError("data.sampling.temperature: greedy completions of a group are all equal: set it above 0")
        if data.sampling.truncates:
            log.warning(
                "data.sampling: top_k, top_p and min_p make training samples off-policy: the loss takes the whole "
                "distribution's log-probs; policy/truncation_gap says by how much they are off"
            )

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
        """The losses of a micro-batch: see :data:`grpo_lightning.algorithms.base.Losses`.

        Args:
            experience: what :meth:`targets` gave, with what the present optimizer step is divided by.
            part: ``part.rows`` are rows of the experience, ``part.tokens`` their tokens.
            metrics: what is logged is added here.
        """

    # -- one iteration ----------------------------------------------------------------------------------------------

    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience:
        """Attempts of the current policy."""
        return collect(prompts)

    def training_step(self, batch: Experience, batch_idx: int) -> None:
        rewards = reward_names(self.verifiers)
        metrics = self.step_metrics(*(f"reward/{name}" for name in rewards))
        add_rollouts(batch, metrics, rewards)
        self._check_errors(batch)
        metrics.add("total/rollout_tokens", batch.tokens.completion_lengths_N.sum())
        if self.mask_truncated:
            batch = replace(batch, counted_N=batch.scored_N & ~batch.truncated_N)
        experience = self.targets(batch, metrics)
        with self.timed(metrics, "update"):
            measured = self._update(experience, metrics)
        kl, tokens = measured or self._update_kl(experience)
        metrics.add("policy/update_kl", kl, tokens)
        self.finish_step(experience, metrics)

    def _check_errors(self, experience: Experience) -> None:
        attempts = experience.attempts
        errors = [attempt.verdict.error for attempt in attempts if attempt.verdict.error is not None]
        broken, all_attempts = self.all_ranks_sum(len(errors), len(attempts))
        if broken > self.max_error_rate * all_attempts:
            raise VerifierError(
                f"a verifier broke on {broken:.0f} of {all_attempts:.0f} completions, more than model.max_error_rate="
                f"{self.max_error_rate} allows; the last error on this rank: {errors[-1] if errors else 'none'}"
            )

    def _update(self, experience: Experience, metrics: StepMetrics) -> tuple[float | Tensor, float | Tensor] | None:
        """All optimizer steps of a rollout; gives :meth:`_update_kl` where it was measured on the way."""
        measured = None
        # Its own generator, so that a resumed run shuffles as the uninterrupted one did.
        seed = row_seed(experience.recipe.seed, "minibatches", self.global_step)
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(self.updates_per_rollout):
            order_N = torch.arange(len(experience))
            if self.minibatches_per_update > 1:
                order_N = torch.randperm(len(experience), generator=generator)
            for number, rows in enumerate(torch.tensor_split(order_N.to(self.device), self.minibatches_per_update)):
                is_first = epoch == 0 and number == 0
                self._optimizer_step(experience, rows, metrics, is_first)
            if self.target_kl is not None:
                measured = self._update_kl(experience)
                # Over all ranks, so that all of them decide alike.
                kl, tokens = self.all_ranks_sum(*measured)
                if kl > self.target_kl * tokens:
                    break
        metrics.add("policy/epochs", epoch + 1, 1)
        return measured

    def _optimizer_step(self, experience: Experience, rows_N: Tensor, metrics: StepMetrics, is_first: bool) -> None:
        tokens = experience.tokens
        counted = rows_N[experience.counted_N[rows_N]]
        tokens_here = tokens.completion_lengths_N[counted].sum()
        sequences, all_tokens = self.all_ranks_sum(len(counted), tokens_here)
        if self.aggregation == "bnpo":
            # Each rank by its own tokens; the gradients of the ranks are then averaged.
            all_tokens = float(tokens_here) * self.trainer.world_size
        experience = replace(
            experience, sequences=max(sequences, 1), sequence_tokens=max(all_tokens, 1), is_first_step=is_first
        )
        learned = rows_N[experience.learned_N[rows_N]]
        losses = partial(self.losses, experience, metrics=metrics)
        self.optimizer_step_on(tokens, learned, losses, metrics, experience.attempts)

    def policy_terms(
        self, experience: Experience, part: Microbatch, metrics: StepMetrics, logprobs_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        """The objective's terms of a micro-batch, with what is logged of them."""
        rows, width = part.rows, logprobs_NT.shape[1]
        assert experience.advantages is not None, "targets computes them"
        advantages = experience.advantages[rows]
        terms = self.objective(
            logprobs_NT,
            None if experience.old_NT is None else experience.old_NT[rows, :width],
            advantages[:, :width] if advantages.dim() == 2 else advantages,
            mask_NT,
        )
        sampled_NT = mask_NT & ~experience.distilled_N[rows, None]
        metrics.add_masked("policy/clip_fraction", terms.clipped_NT.float(), sampled_NT)
        metrics.see("policy/ratio_max", torch.where(sampled_NT, terms.ratio_NT, 0).max())
        if experience.is_first_step:
            gap_NT = (logprobs_NT.detach() - experience.sampler_logprobs_NT[rows, :width]).abs()
            metrics.add_masked("policy/sampler_gap", gap_NT, sampled_NT)
        return terms

    def aggregate(self, experience: Experience, loss_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """A micro-batch's share of the loss of the optimizer step."""
        return aggregate(
            loss_NT,
            mask_NT,
            aggregation=self.aggregation,
            sequences=experience.sequences,
            tokens=experience.sequence_tokens,
            max_tokens=experience.recipe.sampling.cap,
        )

    # -- passes without gradient ------------------------------------------------------------------------------------

    def with_frozen_logprobs(self, experience: Experience, metrics: StepMetrics) -> Experience:
        """The experience with ``old_NT`` and ``reference_NT`` of the learned rows, where the losses need them."""
        old_NT = reference_NT = None
        with self.timed(metrics, "reference"):
            if self.beta > 0:
                reference_NT = self.logprobs_of(experience, experience.learned_N, reference=True)
            if not self.updates_per_rollout == self.minibatches_per_update == 1:
                old_NT = experience.sampler_logprobs_NT
                if self.old_logprobs == "recompute":
                    old_NT = self.logprobs_of(experience, experience.learned_N)
        return replace(experience, old_NT=old_NT, reference_NT=reference_NT)

    def logprobs_of(self, experience: Experience, rows_N: Tensor, reference: bool = False) -> Tensor:
        """``logprobs_NT`` of the policy, or the reference, on some rows; 0 on the others."""
        temperature = experience.recipe.sampling.temperature
        compute = partial(self.policy.logprobs, temperature=temperature, reference=reference)
        width, share = experience.sampler_logprobs_NT.shape[1], self.policy.shares_prompts
        return self.pass_over(experience, rows_N, lambda part: compute(part)[0], width, share)

    def pass_over(
        self,
        experience: Experience,
        rows_N: Tensor,
        compute: Callable[[TokenRows], Tensor],
        width: int,
        share_prompts: bool = False,
    ) -> Tensor:
        """What ``compute`` gives for the tokens of some rows, micro-batch by micro-batch, as ``[N, width]``; 0 else."""
        values_NT = experience.sampler_logprobs_NT.new_zeros(len(experience), width)
        with torch.no_grad():
            for part in self.cut(experience.tokens, rows_N.nonzero()[:, 0], share_prompts):
                part_NT = compute(part.tokens)
                values_NT[part.rows, : part_NT.shape[1]] = part_NT
        return values_NT

    def _update_kl(self, experience: Experience) -> tuple[float | Tensor, float | Tensor]:
        """``KL(pi_old || pi_new)`` of this step's update, on a sixteenth of its rows: a forward pass is expensive.

        Returns:
            The sum over tokens, and their number.
        """
        rows_N = ~experience.distilled_N & (torch.arange(len(experience), device=self.device) % 16 == 0)
        if not experience.learned_N.any():
            return 0.0, 0.0
        new_NT = self.logprobs_of(experience, rows_N)[rows_N]
        mask_NT = length_mask(experience.tokens.completion_lengths_N, new_NT.shape[1])[rows_N]
        # k3 of KL(old || new) from samples of the old policy: the roles of the two swapped.
        kl_NT = kl_divergence(experience.sampler_logprobs_NT[rows_N], new_NT, "k3", mask_NT)
        return masked_sum(kl_NT, mask_NT), mask_NT.sum()
