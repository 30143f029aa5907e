"""Collecting experience: sample, score, and give failed completions another attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch

from grpo_lightning.models.tokenizer import prompt_end
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.engines.base import Request, Sampler
from grpo_lightning.rollout.experience import Experience, Recipe, experience_of
from grpo_lightning.rollout.learner import Learner
from grpo_lightning.rollout.loader import PromptBatch
from grpo_lightning.rollout.refinement import RefinementConfig, can_be_refined, choose, follow
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Attempt, Completion, Turn


class Collector:
    """Makes scored attempts of the current weights of a learner's policy.

    Args:
        learner: the module: its policy, verifiers and phases.
        engine: samples the completions; it has been started, and has the policy's current weights.
        forward_context: the precision that forward passes run in.
        rows_at_once: the most completions that decode together, in whole groups; ``None`` for all.
        phases: time ``rollout`` and ``verify``. Default: the learner's.
    """

    def __init__(
        self,
        learner: Learner,
        engine: Sampler,
        forward_context: Callable[[], AbstractContextManager[object]],
        rows_at_once: int | None = None,
        phases: Phases | None = None,
    ) -> None:
        self.learner = learner
        self.engine = engine
        self.forward_context = forward_context
        self.rows_at_once = rows_at_once
        self.phases = phases

    def __call__(self, prompts: PromptBatch) -> Experience:
        """``group_size`` attempts at every prompt, and those that follow them, on the policy's device."""
        recipe, policy = prompts.recipe, self.learner.policy
        refinement = recipe.refinement
        following = refinement if recipe.purpose == "train" else None
        made = _Attempts(self.learner, recipe, _first_turns(prompts, self.learner), following)
        self._sample(made, recipe.group_size)
        if refinement is not None and recipe.purpose != "train" and refinement.val_feedback != "none":
            made.follow_in_evaluation(refinement)
            self._sample(made, 1)
        attempts = [made.attempts[row] for row in range(len(made.turns))]
        experience = experience_of(attempts, recipe, made.seconds, policy.pad_token_id, policy.device)
        return self._with_allowed(experience) if recipe.purpose == "train" else experience

    def _with_allowed(self, experience: Experience) -> Experience:
        """The experience with the tokens that its constraint allowed, found anew from the completions."""
        constraint = experience.recipe.sampling.constraint
        if constraint is None:
            return experience
        policy, phases = self.learner.policy, self.phases or self.learner.phases
        with phases("rollout", policy.device) as replay:
            completions = [
                (constraint.grammar(attempt.prompt), attempt.completion.token_ids) for attempt in experience.attempts
            ]
            tokens = replace(experience.tokens, allowed=policy.grammars.replay(completions)).to(policy.device)
        seconds = dict(experience.seconds)
        seconds["rollout"] += replay.seconds
        return replace(experience, tokens=tokens, seconds=seconds)

    def _sample(self, made: _Attempts, group_size: int) -> None:
        """Sample and score the turns that have no attempt yet, ``group_size`` of every conversation."""
        waiting = range(len(made.attempts), len(made.turns))
        if not waiting:
            return
        policy, phases = self.learner.policy, self.phases or self.learner.phases
        at_once = max(1, (self.rows_at_once or len(waiting)) // group_size) * group_size
        with Scoring(self.learner.verifiers, made.turns) as scoring:
            made.scoring, made.judging_seconds = scoring, 0.0
            with phases("rollout", policy.device) as rollout, self.forward_context():
                # Lightning's autocast casts float32 weights anew at every use; here nothing changes them meanwhile.
                # Leaving the context empties the cache.
                torch.set_autocast_cache_enabled(True)
                for start in range(waiting.start, waiting.stop, at_once):
                    rows = list(range(start, min(start + at_once, waiting.stop)))
                    requests = [made.request(row) for row in rows]
                    made.decoding = len(rows)
                    on_finish = partial(made.finish, rows) if made.refinement or scoring.any_slow else None
                    completions = self.engine.generate(requests, made.recipe.sampling, on_finish)
                    if on_finish is None:
                        made.finished.update(zip(rows, completions, strict=True))
            with phases("verify", policy.device) as verify:
                inside = made.judging_seconds
                made.judge()
        made.seconds["rollout"] += rollout.seconds - inside
        made.seconds["verify"] += verify.seconds + inside


def _first_turns(prompts: PromptBatch, learner: Learner) -> list[Turn]:
    return [
        Turn(prompt, ids, end, f"{key}/{member}", key)
        for prompt, ids, key in zip(prompts.prompts, prompts.prompt_ids, prompts.keys, strict=True)
        for end in [prompt_end(learner.policy.tokenizer, ids)]
        for member in range(prompts.recipe.group_size)
    ]


class _Attempts:
    """The attempts at a batch of prompts in the making: sampled, judged, and some of them followed by another.

    Args:
        learner: whose policy samples them.
        recipe: how.
        turns: first attempts; the turns that follow are appended.
        refinement: which failures are followed while others still decode; ``None``: none.
    """

    def __init__(
        self, learner: Learner, recipe: Recipe, turns: list[Turn], refinement: RefinementConfig | None
    ) -> None:
        self.learner = learner
        self.recipe = recipe
        self.turns = turns
        self.refinement = refinement
        self.attempts: dict[int, Attempt] = {}
        """Judged, by row."""
        self.finished: dict[int, Completion] = {}
        """What is not judged yet, by row."""
        self.decoding = 0
        """Rows that the engine has not handed over yet."""
        self.scoring: Scoring
        self.seconds = {"rollout": 0.0, "verify": 0.0}
        self.judging_seconds = 0.0
        later_rounds = 0 if refinement is None else refinement.attempts
        self.budget = 0 if refinement is None else refinement.budget * (len(turns) // recipe.group_size)
        self.rounds = [list(range(len(turns))), *([] for _ in range(later_rounds))]
        """Rows of the first attempts, of those that follow them, ..."""
        self.followed: list[set[int]] = [set() for _ in range(later_rounds)]
        """Places in each round but the last of those that another one follows."""

    def request(self, row: int, temperature: float | None = None) -> Request:
        turn, constraint = self.turns[row], self.recipe.sampling.constraint
        grammar = None if constraint is None else constraint.grammar(turn.prompt)
        return Request(turn.conversation, row_seed(self.recipe.seed, turn.key), temperature, grammar)

    def finish(self, rows: list[int], numbers: list[int], completions: list[Completion]) -> list[Request]:
        """Take completions from the engine, and return what to sample next.

        Args:
            rows: the rows of the turns by the engine's numbers; those of further ones are appended.
            numbers: the engine's numbers of the completions.
            completions: one per number.
        """
        done = [rows[number] for number in numbers]
        self.scoring.hand_over(done, completions)
        self.finished.update(zip(done, completions, strict=True))
        self.decoding -= len(done)
        # Which failures are followed must not depend on how slow a verifier is: slow ones are queried last.
        spent = all(len(places) == self.budget for places in self.followed)
        if self.refinement is None or spent or (self.scoring.any_slow and self.decoding):
            return []
        self.judge()
        following = self._follow(self.refinement)
        self.decoding += len(following)
        rows += following
        temperature = self.refinement.temperature
        return [self.request(row, temperature) for row in following]

    def judge(self) -> None:
        """Judge what has finished."""
        started = time.perf_counter()
        rows = sorted(self.finished)
        completions = [self.finished[row] for row in rows]
        self.attempts.update(zip(rows, self.scoring.attempts(rows, completions), strict=True))
        self.finished.clear()
        self.judging_seconds += time.perf_counter() - started

    def follow_in_evaluation(self, refinement: RefinementConfig) -> None:
        """Append a turn after each failure that ``val_feedback`` has feedback for."""
        for row, attempt in list(self.attempts.items()):
            has_feedback = refinement.val_feedback == "verdict" or not attempt.verdict.format_valid
            if has_feedback and can_be_refined(attempt):
                self._append(attempt, row, refinement)

    def _follow(self, refinement: RefinementConfig) -> range:
        """Append turns after the failures that get one, and return their rows."""
        count = len(self.turns)
        for number, followed in enumerate(self.followed):
            rows = self.rounds[number]
            groups = [self.turns[row].group for row in rows]
            for place in choose([self.attempts.get(row) for row in rows], groups, self.budget, followed):
                followed.add(place)
                self.rounds[number + 1].append(len(self.turns))
                self._append(self.attempts[rows[place]], rows[place], refinement)
        return range(count, len(self.turns))

    def _append(self, attempt: Attempt, row: int, refinement: RefinementConfig) -> None:
        policy = self.learner.policy
        self.turns.append(follow(policy.tokenizer, attempt, row, refinement, policy.terminators))
