"""Collecting rollouts: sample, score, and give failed completions another attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from grpo_lightning.models.policy import Policy
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.batch import right_padded, token_rows
from grpo_lightning.rollout.engine import OnFinish, generate
from grpo_lightning.rollout.loader import PromptBatch
from grpo_lightning.rollout.refinement import Attempts, RefinementConfig, can_be_refined, choose, next_turn
from grpo_lightning.rollout.sampling import SamplingParams, row_seed
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Completion, Prompt, RefinementRound, Rollout, RolloutBatch
from grpo_lightning.verifiers.base import Verifier


@dataclass(frozen=True)
class EvalBatch:
    """Rollouts of an evaluation.

    Args:
        single: one completion a prompt, for accuracy.
        refined: the same, with further attempts in place of those that got one; ``None`` without refinement.
        sampled: several completions a prompt, for pass@k; ``None`` where that is not asked for.
        group_size: completions a prompt in ``sampled``.
    """

    single: list[Rollout]
    refined: list[Rollout] | None
    sampled: list[Rollout] | None
    group_size: int

    def to(self, device: torch.device) -> EvalBatch:
        """Nothing to move: Lightning asks every batch."""
        return self


class Collector:
    """Makes scored rollouts of a policy's current weights.

    Args:
        policy: what is sampled from.
        verifiers: by the name their rewards are logged under.
        seed: of the sampling, together with each prompt's key.
        forward_context: the precision that forward passes run in.
        phases: is told of ``rollout`` and ``verify``.
        rows_at_once: completions that decode together at the most, in whole groups; ``None`` for all.
    """

    def __init__(
        self,
        policy: Policy,
        verifiers: Mapping[str, Verifier],
        seed: int,
        forward_context: Callable[[], AbstractContextManager[Any]],
        phases: Phases,
        rows_at_once: int | None = None,
    ) -> None:
        self.policy = policy
        self.verifiers = verifiers
        self.seed = seed
        self.forward_context = forward_context
        self.phases = phases
        self.rows_at_once = rows_at_once
        self.seconds = {"rollout": 0.0, "verify": 0.0}

    def rollouts(
        self,
        batch: PromptBatch,
        group_size: int,
        sampling: SamplingParams,
        refinement: RefinementConfig | None = None,
    ) -> RolloutBatch:
        """``group_size`` rollouts of every prompt, with further attempts if asked for, on the policy's device."""
        prompts = [prompt for prompt in batch.prompts for _ in range(group_size)]
        conversations = [ids for ids in batch.prompt_ids for _ in range(group_size)]
        keys = [f"{key}/{member}" for key in batch.keys for member in range(group_size)]
        rollouts = self._sample(prompts, batch.prompt_ids, group_size, sampling, keys)
        rounds: tuple[RefinementRound, ...] = ()
        if refinement is not None:
            first = Attempts(rollouts, conversations, [row // group_size for row in range(len(rollouts))], keys)
            rounds = self._refine(first, batch, sampling, refinement)
        completions = [rollout.completion for rollout in rollouts]
        return RolloutBatch(
            rollouts=rollouts,
            group_size=group_size,
            tokens=token_rows(conversations, [one.token_ids for one in completions], self.policy.pad_token_id),
            logprobs_NT=right_padded([one.logprobs for one in completions]),
            rewards_N=torch.tensor([rollout.reward for rollout in rollouts]),
            temperature=sampling.temperature,
            max_new_tokens=sampling.cap,
            seconds=dict(self.seconds),
            refinements=rounds,
            keys=batch.keys,
        ).to(self.policy.device)

    def refined(
        self, batch: PromptBatch, rollouts: list[Rollout], sampling: SamplingParams, refinement: RefinementConfig
    ) -> list[Rollout]:
        """One rollout a prompt, with another attempt in place of those that failed as ``val_feedback`` may tell."""
        told = [
            row
            for row, rollout in enumerate(rollouts)
            if can_be_refined(rollout) and (refinement.val_feedback == "verdict" or not rollout.verdict.format_valid)
        ]
        if not told:
            return rollouts
        first = Attempts(rollouts, batch.prompt_ids, list(range(len(rollouts))), batch.keys)
        again = self._attempt_again(first, told, sampling, refinement.template, "attempt2")
        replaced = dict(zip(told, again.rollouts, strict=True))
        return [replaced.get(row, rollout) for row, rollout in enumerate(rollouts)]

    def _refine(
        self, attempts: Attempts, batch: PromptBatch, sampling: SamplingParams, refinement: RefinementConfig
    ) -> tuple[RefinementRound, ...]:
        """Rounds of further attempts, each at the failures of the round before."""
        if refinement.temperature is not None:
            sampling = replace(sampling, temperature=refinement.temperature)
        rounds = []
        for number in range(2, refinement.attempts + 2):
            chosen = choose(attempts.rollouts, attempts.groups, refinement.budget * len(batch.prompts))
            if not chosen:
                break
            attempts = self._attempt_again(attempts, chosen, sampling, refinement.template, f"attempt{number}")
            completions = [rollout.completion for rollout in attempts.rollouts]
            trained_under = attempts.conversations
            if refinement.mode == "distill":
                trained_under = [batch.prompt_ids[group] for group in attempts.groups]
            rounds.append(
                RefinementRound(
                    rollouts=attempts.rollouts,
                    parents=chosen,
                    groups=attempts.groups,
                    tokens=token_rows(trained_under, [one.token_ids for one in completions], self.policy.pad_token_id),
                    logprobs_NT=right_padded([one.logprobs for one in completions]),
                    rewards_N=torch.tensor([rollout.reward for rollout in attempts.rollouts]),
                )
            )
        return tuple(rounds)

    def _attempt_again(
        self, attempts: Attempts, chosen: list[int], sampling: SamplingParams, template: str, name: str
    ) -> Attempts:
        """One further attempt at each chosen row, after the verdict's feedback."""
        conversations = [
            next_turn(
                self.policy.tokenizer,
                attempts.conversations[row],
                attempts.rollouts[row],
                template,
                self.policy.terminators,
            )
            for row in chosen
        ]
        keys = [f"{attempts.keys[row]}/{name}" for row in chosen]
        prompts = [attempts.rollouts[row].prompt for row in chosen]
        rollouts = self._sample(prompts, conversations, 1, sampling, keys)
        return Attempts(rollouts, conversations, [attempts.groups[row] for row in chosen], keys)

    def _sample(
        self,
        prompts: list[Prompt],
        conversations: list[list[int]],
        group_size: int,
        sampling: SamplingParams,
        keys: list[str],
    ) -> list[Rollout]:
        """Sample and score ``group_size`` completions of every conversation; ``prompts`` and ``keys`` are one a row."""
        seeds = [row_seed(self.seed, key) for key in keys]
        prompts_at_once = max(1, (self.rows_at_once or len(keys)) // group_size)
        with Scoring(self.verifiers, prompts) as scoring:
            on_finish = scoring.hand_over if scoring.any_slow else None
            completions: list[Completion] = []
            with self.phases("rollout", self.policy.device) as rollout, self.forward_context():
                # Lightning's autocast casts float32 weights anew at every use; here nothing changes them meanwhile.
                # Leaving the context empties the cache.
                torch.set_autocast_cache_enabled(True)
                for start in range(0, len(conversations), prompts_at_once):
                    part = slice(start * group_size, (start + prompts_at_once) * group_size)
                    completions += generate(
                        self.policy,
                        conversations[start : start + prompts_at_once],
                        group_size,
                        sampling,
                        seeds[part],
                        on_finish and partial(_shifted, on_finish, part.start),
                    )
            with self.phases("verify", self.policy.device) as verify:
                rollouts = scoring.rollouts(completions)
        self.seconds["rollout"] += rollout.seconds
        self.seconds["verify"] += verify.seconds
        return rollouts


def _shifted(on_finish: OnFinish, start: int, rows: list[int], completions: list[Completion]) -> None:
    """Hand over rows of one part, counted among all."""
    on_finish([start + row for row in rows], completions)
