"""The loss of an optimizer step on rollouts, in shares by micro-batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from grpo_lightning.algorithms.correction import SamplerCorrection
from grpo_lightning.algorithms.metrics import RankedModule, StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.functional import Aggregation, aggregate, kl_divergence
from grpo_lightning.objectives import Objective, PolicyLossTerms
from grpo_lightning.rollout.experience import Experience


class RolloutLoss:
    """Computes losses per token, and aggregates them.

    Args:
        objective: the loss of a token from its log-probs and advantage.
        aggregation: how losses of tokens become the loss of a step, see
            :func:`~grpo_lightning.functional.losses.aggregate`.
        correction: weights the loss of each token for the gap to the sampler.
    """

    def __init__(self, objective: Objective, aggregation: Aggregation, correction: SamplerCorrection) -> None:
        self.objective = objective
        self.aggregation = aggregation
        self.correction = correction

    def counted(self, experience: Experience, rows_N: Tensor, ranks: RankedModule, is_first_step: bool) -> Experience:
        """The experience with what the loss of an optimizer step is divided by. Every rank must call it.

        Args:
            experience: the rows of a step.
            rows_N: indices of the rows of this optimizer step, on this rank.
            ranks: adds up over the ranks.
            is_first_step: whether the policy is still the one that sampled.
        """
        counted = rows_N[experience.counted_N[rows_N]]
        tokens_here = experience.tokens.completion_lengths_N[counted].sum()
        sequences, tokens = ranks.all_ranks_sum(len(counted), tokens_here)
        if self.aggregation == "bnpo":
            # Each rank by its own tokens; the gradients of the ranks are then averaged.
            tokens = float(tokens_here) * ranks.trainer.world_size
        return replace(
            experience, sequences=max(sequences, 1), sequence_tokens=max(tokens, 1), is_first_step=is_first_step
        )

    def terms(
        self, experience: Experience, part: Microbatch, metrics: StepMetrics, logprobs_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        """The objective's terms of a micro-batch, corrected for the gap to the sampler; ratio and gap are logged."""
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
        sampler_NT = experience.sampler_logprobs_NT[rows, :width]
        if experience.is_first_step:
            gap_NT = logprobs_NT.detach() - sampler_NT
            metrics.add_masked("policy/sampler_gap", gap_NT.abs(), sampled_NT)
            kl_NT = kl_divergence(sampler_NT, logprobs_NT.detach(), "k3", sampled_NT)
            metrics.add_masked("policy/sampler_kl", kl_NT, sampled_NT)
        before_NT = logprobs_NT if experience.old_NT is None else experience.old_NT[rows, :width]
        corrected = self.correction.weights(before_NT, sampler_NT, sampled_NT)
        if corrected is None:
            return terms
        weights_NT, cut_NT = corrected
        metrics.add_masked("policy/sampler_weight", weights_NT, sampled_NT)
        metrics.add_masked("policy/sampler_cut", cut_NT.float(), sampled_NT)
        return terms._replace(loss_NT=weights_NT * terms.loss_NT)

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
