"""Passes of models over the rows of a step, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch, microbatches
from grpo_lightning.functional import kl_divergence, length_mask, masked_sum
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.rollout.ranks import rank, world_size
from grpo_lightning.speed.casts import cached_casts
from grpo_lightning.speed.shared_prompt import PredictingStates
from grpo_lightning.types import TokenRows


class Passes:
    """Makes passes over rows, cut into micro-batches by a budget of tokens.

    Args:
        policy: the policy that is trained.
        max_tokens: prompt and completion tokens, padding included, of one micro-batch.
    """

    def __init__(self, policy: Policy, max_tokens: int) -> None:
        self.policy = policy
        self.max_tokens = max_tokens

    def cut(self, tokens: TokenRows, rows: Tensor, share_prompts: bool) -> list[Microbatch]:
        """The micro-batches of a pass over some rows, with or without gradients."""
        return microbatches(tokens, rows, self.max_tokens, share_prompts, self.policy.pass_overhead)

    def with_gradient(
        self,
        part: Microbatch,
        metrics: StepMetrics,
        temperature: float = 1.0,
        on_states: Callable[[PredictingStates], None] | None = None,
        on_entropy: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``logprobs_NT`` of the policy for a micro-batch, and ``mask_NT``; the entropy is logged.

        Args:
            part: the rows.
            metrics: what is logged is added here.
            temperature: the sampling temperature.
            on_states: is called with the hidden states that predict the completion tokens.
            on_entropy: is called with ``entropy_NT``, which has a gradient too, and is 0 at masked positions.
        """
        mask_NT = length_mask(part.tokens.completion_lengths_N)
        logprobs_NT, entropy_NT = self.policy.logprobs(part.tokens, temperature, on_states=on_states)
        metrics.add_masked("policy/entropy", entropy_NT, mask_NT)
        if on_entropy is not None:
            on_entropy(entropy_NT)
        return logprobs_NT, mask_NT

    def without_gradient(
        self,
        experience: Experience,
        rows_N: Tensor,
        compute: Callable[[TokenRows], Tensor],
        width: int,
        share_prompts: bool = False,
    ) -> Tensor:
        """What ``compute`` returns for the tokens of some rows.

        Args:
            experience: the rows of a step.
            rows_N: True for the rows to compute.
            compute: returns one row of values per row of tokens; it may be narrower than ``width``.
            width: columns of the result.
            share_prompts: whether a prompt may be run once for all of its rows: only for a compute that supports it.

        Returns:
            ``[N, width]``; 0 for the other rows.
        """
        values_NT = experience.sampler_logprobs_NT.new_zeros(len(experience), width)
        with torch.no_grad(), cached_casts():
            for part in self.cut(experience.tokens, rows_N.nonzero()[:, 0], share_prompts):
                part_NT = compute(part.tokens)
                values_NT[part.rows, : part_NT.shape[1]] = part_NT
        return values_NT

    def logprobs(self, experience: Experience, rows_N: Tensor, reference: bool = False) -> Tensor:
        """``logprobs_NT`` of the policy, or of the reference, for some rows, without gradient; 0 for the others."""
        temperature = experience.recipe.sampling.temperature
        compute = partial(self.policy.logprobs, temperature=temperature, reference=reference)
        width, share = experience.sampler_logprobs_NT.shape[1], self.policy.shares_prompts
        return self.without_gradient(experience, rows_N, lambda tokens: compute(tokens)[0], width, share)

    def entropies(self, experience: Experience, rows_N: Tensor) -> Tensor:
        """``entropy_NT`` of the policy for some rows, without gradient; 0 for the others."""
        compute = partial(self.policy.logprobs, temperature=experience.recipe.sampling.temperature)
        width, share = experience.sampler_logprobs_NT.shape[1], self.policy.shares_prompts
        return self.without_gradient(experience, rows_N, lambda tokens: compute(tokens)[1], width, share)

    def sampler_gap(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """How far the log-probs of sampling and of training are apart, over all rows but distilled ones.

        Returns:
            The sum over tokens of the absolute difference (nats), and the number of tokens.
        """
        rows_N = ~experience.distilled_N
        gap_NT = (self.logprobs(experience, rows_N) - experience.sampler_logprobs_NT).abs()
        mask_NT = length_mask(experience.tokens.completion_lengths_N, gap_NT.shape[1]) & rows_N[:, None]
        return masked_sum(gap_NT, mask_NT), mask_NT.sum()

    def update_kl(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """``KL(pi_old || pi_new)`` of a step's update, on a sixteenth of its conversations: a pass is expensive.

        They are chosen by their places in the whole step, whose prompts are dealt out to the ranks one by one, so that
        several processes measure what one does. The first is always there.

        Returns:
            The sum over tokens, and their number, on this rank.
        """
        size = experience.recipe.group_size
        root_N = torch.tensor(experience.root_rows, device=experience.distilled_N.device)
        place_N = (root_N // size * world_size() + rank()) * size + root_N % size
        rows_N = ~experience.distilled_N & (place_N % 16 == 0)
        new_NT = self.logprobs(experience, rows_N)[rows_N]
        mask_NT = length_mask(experience.tokens.completion_lengths_N, new_NT.shape[1])[rows_N]
        # k3 of KL(old || new) from samples of the old policy: the roles of the two swapped.
        kl_NT = kl_divergence(experience.sampler_logprobs_NT[rows_N], new_NT, "k3", mask_NT)
        return masked_sum(kl_NT, mask_NT), mask_NT.sum()
