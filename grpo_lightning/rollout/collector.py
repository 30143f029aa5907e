"""Collecting rollouts: sample, score, and give failed completions another attempt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from grpo_lightning.models.policy import Policy
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.batch import right_padded, token_rows
from grpo_lightning.rollout.engines.base import Engine, Request
from grpo_lightning.rollout.loader import PromptBatch
from grpo_lightning.rollout.refinement import Attempt, RefinementConfig, can_be_refined, choose, follow
from grpo_lightning.rollout.sampling import SamplingParams, row_seed
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Completion, RefinementRound, Rollout, RolloutBatch
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
        policy: the policy that the engine samples from.
        engine: samples the completions; it has been started, and has the policy's current weights.
        verifiers: by the name their rewards are logged under.
        seed: of the sampling, together with each prompt's key.
        forward_context: the precision that forward passes run in.
        phases: is told of ``rollout`` and ``verify``.
        rows_at_once: completions that decode together at the most, in whole groups; ``None`` for all.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        verifiers: Mapping[str, Verifier],
        seed: int,
        forward_context: Callable[[], AbstractContextManager[Any]],
        phases: Phases,
        rows_at_once: int | None = None,
    ) -> None:
        self.policy = policy
        self.engine = engine
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
        attempts = [
            Attempt(prompt, ids, f"{key}/{member}", group)
            for group, (prompt, ids, key) in enumerate(zip(batch.prompts, batch.prompt_ids, batch.keys, strict=True))
            for member in range(group_size)
        ]
        first = attempts.copy()
        rounds = self._sample(attempts, group_size, sampling, refinement)
        rollouts = [attempt.judged for attempt in first]
        completions = [rollout.completion for rollout in rollouts]
        conversations = [attempt.conversation for attempt in first]
        return RolloutBatch(
            rollouts=rollouts,
            group_size=group_size,
            tokens=token_rows(conversations, [one.token_ids for one in completions], self.policy.pad_token_id),
            logprobs_NT=right_padded([one.logprobs for one in completions]),
            rewards_N=torch.tensor([rollout.reward for rollout in rollouts]),
            temperature=sampling.temperature,
            max_new_tokens=sampling.cap,
            seconds=dict(self.seconds),
            refinements=() if refinement is None else self._rounds(attempts, rounds, batch, refinement),
            keys=batch.keys,
        ).to(self.policy.device)

    def refined(
        self, batch: PromptBatch, rollouts: list[Rollout], sampling: SamplingParams, refinement: RefinementConfig
    ) -> list[Rollout]:
        """One rollout a prompt, with another attempt in place of those that failed as ``val_feedback`` may tell."""
        again = [
            follow(
                self.policy.tokenizer,
                row,
                Attempt(rollout.prompt, batch.prompt_ids[row], batch.keys[row], row, rollout=rollout),
                refinement.template,
                self.policy.terminators,
            )
            for row, rollout in enumerate(rollouts)
            if can_be_refined(rollout) and (refinement.val_feedback == "verdict" or not rollout.verdict.format_valid)
        ]
        if not again:
            return rollouts
        self._sample(again, 1, sampling)
        replaced = {attempt.parent: attempt.judged for attempt in again}
        return [replaced.get(row, rollout) for row, rollout in enumerate(rollouts)]

    def _rounds(
        self, attempts: list[Attempt], rounds: list[list[int]], batch: PromptBatch, refinement: RefinementConfig
    ) -> tuple[RefinementRound, ...]:
        """The further attempts, each round in the order of the round before; ``rounds`` are the rows of all."""
        found = []
        place_of = {row: row for row in rounds[0]}
        for unsorted in filter(None, rounds[1:]):
            rows = sorted(unsorted, key=lambda row: place_of[attempts[row].parent])
            made = [attempts[row] for row in rows]
            rollouts = [attempt.judged for attempt in made]
            completions = [rollout.completion for rollout in rollouts]
            trained_under = [attempt.conversation for attempt in made]
            if refinement.mode == "distill":
                trained_under = [batch.prompt_ids[attempt.group] for attempt in made]
            found.append(
                RefinementRound(
                    rollouts=rollouts,
                    parents=[place_of[attempt.parent] for attempt in made],
                    groups=[attempt.group for attempt in made],
                    tokens=token_rows(trained_under, [one.token_ids for one in completions], self.policy.pad_token_id),
                    logprobs_NT=right_padded([one.logprobs for one in completions]),
                    rewards_N=torch.tensor([rollout.reward for rollout in rollouts]),
                )
            )
            place_of = {row: index for index, row in enumerate(rows)}
        return tuple(found)

    def _sample(
        self,
        attempts: list[Attempt],
        group_size: int,
        sampling: SamplingParams,
        refinement: RefinementConfig | None = None,
    ) -> list[list[int]]:
        """Sample and score attempts, ``group_size`` of every conversation; those that follow are put behind them.

        Returns:
            The rows of the first attempts, of those that follow them, and so on.
        """
        count = len(attempts)
        at_once = max(1, (self.rows_at_once or count) // group_size) * group_size
        with Scoring(self.verifiers, [attempt.prompt for attempt in attempts]) as scoring:
            judging = _Judging(self, attempts, scoring, refinement, count // group_size)
            with self.phases("rollout", self.policy.device) as rollout, self.forward_context():
                # Lightning's autocast casts float32 weights anew at every use; here nothing changes them meanwhile.
                # Leaving the context empties the cache.
                torch.set_autocast_cache_enabled(True)
                for start in range(0, count, at_once):
                    rows = list(range(start, min(start + at_once, count)))
                    requests = [self.request(attempts[row]) for row in rows]
                    judging.decoding = len(rows)
                    on_finish = partial(judging.finish, rows) if refinement or scoring.any_slow else None
                    made = self.engine.generate(requests, sampling, on_finish)
                    if on_finish is None:
                        judging.finished.update(zip(rows, made, strict=True))
            with self.phases("verify", self.policy.device) as verify:
                inside = judging.seconds
                judging.judge()
        self.seconds["rollout"] += rollout.seconds - inside
        self.seconds["verify"] += verify.seconds + inside
        return judging.rounds

    def request(self, attempt: Attempt, temperature: float | None = None) -> Request:
        return Request(attempt.conversation, row_seed(self.seed, attempt.key), temperature)


class _Judging:
    """What becomes of attempts when they have been sampled: they are judged, and some are followed by another.

    Args:
        collector: whose sampling it is.
        attempts: all of them; those that follow are put behind.
        scoring: of these attempts.
        refinement: ``None``: nothing follows.
        groups: how many prompts there are.
    """

    def __init__(
        self,
        collector: Collector,
        attempts: list[Attempt],
        scoring: Scoring,
        refinement: RefinementConfig | None,
        groups: int,
    ) -> None:
        self.collector = collector
        self.attempts = attempts
        self.scoring = scoring
        self.refinement = refinement
        self.decoding = 0
        """Attempts that the engine has not handed over yet."""
        self.finished: dict[int, Completion] = {}
        """What is not judged yet, by row."""
        self.seconds = 0.0
        further = 0 if refinement is None else refinement.attempts
        self.budget = 0 if refinement is None else refinement.budget * groups
        self.rounds = [list(range(len(attempts))), *([] for _ in range(further))]
        """Rows of the first attempts, of those that follow them, ..."""
        self.followed: list[set[int]] = [set() for _ in range(further)]
        """Places in each round but the last of those that another one follows."""

    def finish(self, rows: list[int], numbers: list[int], completions: list[Completion]) -> list[Request]:
        """Take completions from the engine, and say what to sample further.

        Args:
            rows: the rows of the attempts by the engine's numbers; those of the further ones are put behind.
            numbers: the engine's.
            completions: one a number.
        """
        done = [rows[number] for number in numbers]
        self.scoring.hand_over(done, completions)
        self.finished.update(zip(done, completions, strict=True))
        self.decoding -= len(done)
        # What a slow verifier says must not depend on how slow it is, so it is asked when nothing else is left to do.
        spent = all(len(places) == self.budget for places in self.followed)
        if self.refinement is None or spent or (self.scoring.any_slow and self.decoding):
            return []
        self.judge()
        following = self._following(self.refinement)
        self.decoding += len(following)
        rows += range(len(self.attempts) - len(following), len(self.attempts))
        temperature = self.refinement.temperature
        return [self.collector.request(attempt, temperature) for attempt in following]

    def judge(self) -> None:
        """Judge what has finished."""
        started = time.perf_counter()
        rows = sorted(self.finished)
        completions = [self.finished[row] for row in rows]
        for row, rollout in zip(rows, self.scoring.rollouts(rows, completions), strict=True):
            self.attempts[row].rollout = rollout
        self.finished.clear()
        self.seconds += time.perf_counter() - started

    def _following(self, refinement: RefinementConfig) -> list[Attempt]:
        """Put attempts behind those whose turn it is to be followed."""
        policy, count = self.collector.policy, len(self.attempts)
        for number, followed in enumerate(self.followed):
            before = [self.attempts[row] for row in self.rounds[number]]
            rollouts, groups = [one.rollout for one in before], [one.group for one in before]
            for place in choose(rollouts, groups, self.budget, followed):
                followed.add(place)
                self.rounds[number + 1].append(len(self.attempts))
                self.attempts.append(
                    follow(
                        policy.tokenizer, self.rounds[number][place], before[place], refinement.template,
                        policy.terminators,
                    )
                )  # fmt: skip
        self.scoring.prompts += [attempt.prompt for attempt in self.attempts[count:]]
        return self.attempts[count:]
