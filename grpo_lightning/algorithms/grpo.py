"""GRPO: group-relative policy optimization, arXiv 2402.03300, and its variants."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.algorithms.rollout_metrics import ROLLOUT_MAXIMA, ROLLOUT_MEANS, add_rollouts, add_truncation
from grpo_lightning.algorithms.rows import LearningRows, learning_rows
from grpo_lightning.functional import (
    AdvantageKind,
    Aggregation,
    KLEstimator,
    Objective,
    RatioLevel,
    aggregate,
    has_signal,
    kl_divergence,
    masked_std,
    policy_loss,
)
from grpo_lightning.models.policy import length_mask
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.rollout.scoring import reward_names
from grpo_lightning.types import ConfigError, Credit, RolloutBatch, RunError

log = logging.getLogger(__name__)


class VerifierError(RunError):
    """A verifier broke on too many completions of one step."""


@dataclass(frozen=True)
class _Targets:
    """What the update works towards; all of it is fixed before the first optimizer step.

    Args:
        rows: the attempts, with their advantages.
        counted_N: rows that the loss is divided by: scored ones, with or without signal.
        learned_N: those of them that contribute a gradient.
        reference_NT: the reference's log-probs; ``None`` without KL.
        temperature: of the log-probs.
        max_new_tokens: the cap on completions.
    """

    rows: LearningRows
    counted_N: Tensor
    learned_N: Tensor
    reference_NT: Tensor | None
    temperature: float
    max_new_tokens: int


class GRPOModule(PolicyModule):
    """Group-relative policy optimization.

    ``L = - 1/N sum_i 1/|y_i| sum_t [ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) - beta KL(pi || pi_ref) ]``
    with ``A = (r - mean of the group) / (std of the group + eps)`` and ``rho`` the ratio to the policy that sampled.
    Each part has its variants; the equations stand in :mod:`grpo_lightning.functional`.

    Args:
        beta: weight of the KL to the reference. With 0 there is no reference, and groups without signal cost nothing.
        kl_estimator: of that KL (http://joschu.net/blog/kl-approx.html).
        epsilon: clip of the ratio.
        epsilon_high: upper clip, ``None`` for ``epsilon`` (clip-higher of DAPO, arXiv 2503.14476).
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high`` (arXiv 2505.07291).
        ratio_level: ``token``, or ``sequence`` for GSPO (arXiv 2507.18071).
        objective: ``clip``, or ``cispo`` (arXiv 2506.13585), which clips the weight and keeps every gradient.
        cispo_epsilon_high: the cap of that weight.
        advantage: ``group``; ``none-scaled`` leaves the division out (Dr. GRPO, arXiv 2503.20783); ``batch-std``
            divides by the std of the step's rewards; ``leave_one_out`` is RLOO's (arXiv 2402.14740).
        aggregation: ``grpo`` averages within a completion, then over completions; ``dr_grpo`` divides by
            ``max_new_tokens`` instead; ``dapo`` averages over all tokens of the step; ``bnpo`` over each rank's.
        updates_per_rollout: passes over the rollouts of a step (mu).
        minibatches_per_update: optimizer steps a pass.
        old_logprobs: where the ratio's denominator comes from when there are several optimizer steps: ``sampler``
            keeps the log-probs of the rollout, ``recompute`` makes a forward pass for them. With one step the policy
            is its own, and neither is needed.
        mask_truncated: leave completions that ran into the cap out of the loss (arXiv 2503.14476, section 3.4).
        max_error_rate: the share of a step's completions that a verifier may break on before the run stops.
    """

    step_means = (
        *PolicyModule.step_means, *ROLLOUT_MEANS,
        "reward/groups_without_signal", "advantage/std", "advantage/abs_mean",
        "policy/kl", "policy/clip_fraction", "policy/update_kl", "policy/sampler_gap",
        "time/reference_s",
    )  # fmt: skip
    step_maxima = (*ROLLOUT_MAXIMA, "policy/ratio_max")

    def __init__(
        self,
        *args: Any,
        beta: float = 0.04,
        kl_estimator: KLEstimator = "k3",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        ratio_level: RatioLevel = "token",
        objective: Objective = "clip",
        cispo_epsilon_high: float = 5.0,
        advantage: AdvantageKind = "group",
        aggregation: Aggregation = "grpo",
        updates_per_rollout: int = 1,
        minibatches_per_update: int = 1,
        old_logprobs: Literal["sampler", "recompute"] = "sampler",
        mask_truncated: bool = False,
        max_error_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.kl_estimator = kl_estimator
        self.clip: dict[str, Any] = {
            "epsilon": epsilon,
            "epsilon_high": epsilon_high,
            "delta": delta,
            "ratio_level": ratio_level,
            "objective": objective,
            "cispo_epsilon_high": cispo_epsilon_high,
        }
        self.advantage = advantage
        self.aggregation = aggregation
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_update = minibatches_per_update
        self.old_logprobs = old_logprobs
        self.mask_truncated = mask_truncated
        self.max_error_rate = max_error_rate
        self._validate()

    def _validate(self) -> None:
        for name in ("updates_per_rollout", "minibatches_per_update"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError(f"model.max_error_rate: must be from 0 to 1, not {self.max_error_rate}")
        if self.beta > 0 and self.policy_config.reference == "none":
            raise ConfigError("model.beta: above 0 it needs a reference, but model.policy.reference is none")
        one = torch.zeros(1, 1)
        try:
            policy_loss(
                one,
                one,
                one,
                one.bool(),
                ref_logprobs_NT=one,
                beta=self.beta,
                kl_estimator=self.kl_estimator,
                **self.clip,
            )
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error

    @property
    def wants_reference(self) -> bool:
        return self.beta > 0

    @property
    def _distils(self) -> bool:
        return self.data.refinement is not None and self.data.refinement.mode == "distill"

    def setup(self, stage: str) -> None:
        """Check what the objective asks of the data, before the model is loaded."""
        super().setup(stage)
        if stage != "fit":
            return
        data = self.data
        if data.group_size < 2:
            raise ConfigError(
                f"data.group_size: an advantage relative to the group needs at least 2 completions a prompt, not "
                f"{data.group_size}"
            )
        if data.sampling.temperature == 0:
            raise ConfigError("data.sampling.temperature: greedy completions of a group are all equal: set it above 0")
        if data.sampling.truncates:
            log.warning(
                "data.sampling: top_k, top_p and min_p make training samples off-policy: the loss takes the whole "
                "distribution's log-probs; policy/truncation_gap says by how much they are off"
            )

    # -- one iteration ----------------------------------------------------------------------------------------------

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        rewards = reward_names(self.verifiers)
        metrics = StepMetrics([*self.step_means, *(f"reward/{name}" for name in rewards)], self.step_maxima)
        add_rollouts(batch, metrics, rewards)
        if self.data.sampling.truncates:
            add_truncation(batch, metrics)
        self._check_errors(batch)
        with self.timed(metrics, "reference"):
            targets = self._targets(batch, metrics)
        self.credit = Credit(targets.rows.advantages_N, targets.learned_N, targets.reference_NT)
        with self.timed(metrics, "update"):
            self._update(targets, metrics)
        self._measure_update(targets, metrics)
        self.finish_step(metrics)

    def _check_errors(self, batch: RolloutBatch) -> None:
        attempts = [*batch.rollouts, *(rollout for one in batch.refinements for rollout in one.rollouts)]
        errors = [rollout.verdict.error for rollout in attempts if rollout.verdict.error is not None]
        broken, all_attempts = self.all_ranks_sum(len(errors), len(attempts))
        if broken > self.max_error_rate * all_attempts:
            raise VerifierError(
                f"a verifier broke on {broken:.0f} of {all_attempts:.0f} completions, more than model.max_error_rate="
                f"{self.max_error_rate} allows; the last error on this rank: {errors[-1] if errors else 'none'}"
            )

    def _targets(self, batch: RolloutBatch, metrics: StepMetrics) -> _Targets:
        batch_std = self._batch_std(batch.rewards_N) if self.advantage == "batch-std" else None
        rows = learning_rows(batch, self.advantage, batch_std, self.data.refinement)
        signal_B = has_signal(rows.advantages_N[: len(batch)].view(-1, batch.group_size))
        metrics.add("reward/groups_without_signal", (~signal_B).sum(), len(signal_B))
        metrics.add_masked("advantage/abs_mean", rows.advantages_N.abs(), rows.scored_N)
        metrics.add("advantage/std", masked_std(rows.advantages_N, rows.scored_N), 1)
        counted_N = rows.scored_N & ~rows.truncated_N if self.mask_truncated else rows.scored_N
        learned_N = counted_N & (rows.advantages_N != 0) if self.beta == 0 else counted_N
        targets = _Targets(rows, counted_N, learned_N, None, batch.temperature, batch.max_new_tokens)
        if self.beta > 0:
            targets = replace(targets, reference_NT=self._pass_over(targets, learned_N, reference=True))
        return targets

    def _update(self, targets: _Targets, metrics: StepMetrics) -> None:
        on_policy = self.updates_per_rollout == self.minibatches_per_update == 1
        old_NT = None if on_policy else targets.rows.logprobs_NT
        if not on_policy and self.old_logprobs == "recompute":
            old_NT = self._pass_over(targets, targets.learned_N)
        # Its own generator, so that a resumed run shuffles as the uninterrupted one did.
        generator = torch.Generator().manual_seed(row_seed(self.data.seed, "minibatches", self.global_step))
        for epoch in range(self.updates_per_rollout):
            order_N = torch.arange(len(targets.rows))
            if self.minibatches_per_update > 1:
                order_N = torch.randperm(len(targets.rows), generator=generator)
            for part, rows in enumerate(torch.tensor_split(order_N.to(self.device), self.minibatches_per_update)):
                self._optimizer_step(targets, rows, old_NT, metrics, first=epoch == part == 0)

    def _optimizer_step(
        self, targets: _Targets, minibatch: Tensor, old_NT: Tensor | None, metrics: StepMetrics, first: bool
    ) -> None:
        all_rows = targets.rows
        counted = minibatch[targets.counted_N[minibatch]]
        tokens_here = all_rows.tokens.completion_lengths_N[counted].sum()
        sequences, tokens = self.all_ranks_sum(len(counted), tokens_here)
        if self.aggregation == "bnpo":
            # Each rank by its own tokens; the gradients of the ranks are then averaged.
            tokens = float(tokens_here) * self.trainer.world_size

        def loss(rows: Tensor, logprobs_NT: Tensor, entropy_NT: Tensor, mask_NT: Tensor) -> Tensor:
            width = logprobs_NT.shape[1]
            inputs: dict[str, Any] = {
                "logprobs_NT": logprobs_NT,
                "old_logprobs_NT": None if old_NT is None else old_NT[rows, :width],
                "advantages_N": all_rows.advantages_N[rows],
                "mask_NT": mask_NT,
                "ref_logprobs_NT": None if targets.reference_NT is None else targets.reference_NT[rows, :width],
                "beta": self.beta,
                "kl_estimator": self.kl_estimator,
            }
            terms = policy_loss(**inputs, **self.clip)
            loss_NT, distilled_N1 = terms.loss_NT, all_rows.distilled_N[rows, None]
            if self._distils:
                shaped = policy_loss(**inputs, objective="shaped")
                loss_NT = torch.where(distilled_N1, shaped.loss_NT, loss_NT)
            sampled_NT = mask_NT & ~distilled_N1
            if targets.reference_NT is not None:
                metrics.add_masked("policy/kl", terms.kl_NT, mask_NT)
            metrics.add_masked("policy/clip_fraction", terms.clipped_NT.float(), sampled_NT)
            metrics.see("policy/ratio_max", torch.where(sampled_NT, terms.ratio_NT, 0).max())
            if first:
                gap_NT = (logprobs_NT.detach() - all_rows.logprobs_NT[rows, :width]).abs()
                metrics.add_masked("policy/sampler_gap", gap_NT, sampled_NT)
            return aggregate(
                loss_NT,
                mask_NT,
                aggregation=self.aggregation,
                sequences=max(sequences, 1),
                tokens=max(tokens, 1),
                max_tokens=targets.max_new_tokens,
            )

        learned = minibatch[targets.learned_N[minibatch]]
        self.optimizer_step_on(all_rows.tokens, learned, loss, metrics, targets.temperature, all_rows.rollouts)

    # -- passes without gradient ------------------------------------------------------------------------------------

    def _pass_over(self, targets: _Targets, rows_N: Tensor, reference: bool = False) -> Tensor:
        """``logprobs_NT`` of the policy, or the reference, on some rows; 0 on the others."""
        tokens = targets.rows.tokens
        logprobs_NT = torch.zeros_like(targets.rows.logprobs_NT)
        rows = rows_N.nonzero()[:, 0]
        with torch.no_grad():
            for index in microbatches(tokens.lengths_N[rows], self.max_tokens_per_microbatch):
                part, _ = self.policy.logprobs(tokens.select(rows[index]), targets.temperature, reference)
                logprobs_NT[rows[index], : part.shape[1]] = part
        return logprobs_NT

    def _measure_update(self, targets: _Targets, metrics: StepMetrics) -> None:
        """``KL(pi_old || pi_new)`` of this step's update, on a sixteenth of its rollouts: a forward pass is dear."""
        rows_N = ~targets.rows.distilled_N & (torch.arange(len(targets.rows), device=self.device) % 16 == 0)
        if not targets.learned_N.any():
            return
        new_NT = self._pass_over(targets, rows_N)[rows_N]
        mask_NT = length_mask(targets.rows.tokens.completion_lengths_N, new_NT.shape[1])[rows_N]
        # k3 of KL(old || new) from samples of the old policy: the roles of the two swapped.
        kl_NT = kl_divergence(targets.rows.logprobs_NT[rows_N], new_NT, "k3", mask_NT)
        metrics.add_masked("policy/update_kl", kl_NT, mask_NT)

    def _batch_std(self, rewards_N: Tensor) -> Tensor:
        """The (Bessel-corrected) std of the rewards of all ranks."""
        valid_N = ~rewards_N.isnan()
        values = rewards_N[valid_N].double()
        count, total, squares = self.all_ranks_sum(len(values), values.sum(), values.square().sum())
        variance = (squares - total**2 / count) / (count - 1) if count > 1 else 0.0
        return torch.tensor(max(variance, 0.0) ** 0.5, device=rewards_N.device)
