"""Collecting experience: sample, score, and sample what follows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from grpo_lightning.constraints.base import Constraint
from grpo_lightning.environments.base import Environment
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.attempts import Attempts, Follower
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.engines.base import Sampler
from grpo_lightning.rollout.episodes import Episodes
from grpo_lightning.rollout.experience import Experience
from grpo_lightning.rollout.learner import Learner
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.replacing import Replacing
from grpo_lightning.rollout.rounds import Rounds
from grpo_lightning.rollout.scoring import Scoring, all_reward_names
from grpo_lightning.speed.casts import cached_casts


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
        """``group_size`` attempts at every prompt, and those that follow or replace them, on the policy's device."""
        recipe, policy = prompts.recipe, self.learner.policy
        if recipe.environment is not None:
            return self._episodes(prompts, recipe.environment)
        firsts = [turn for place in range(len(prompts.prompts)) for turn in prompts.turns(place, policy.tokenizer)]
        refinement = recipe.refinement
        rounds = None if refinement is None else Rounds(refinement, policy, len(firsts), recipe.group_size)
        in_training = rounds if recipe.purpose == "train" else None
        replacing = Replacing(prompts, policy.tokenizer) if prompts.replacements else None
        made = Attempts(recipe, firsts, in_training or replacing or Follower())
        self._sample(made, recipe.group_size)
        if rounds is not None and in_training is None and rounds.refinement.val_feedback != "none":
            made.append(rounds.follow_in_evaluation(made))
            self._sample(made, 1)
        replaced = [] if replacing is None else replacing.replaced(made)
        experience = experience_of(made.settled(), recipe, made.seconds, policy.pad_token_id, policy.device, replaced)
        constraint = recipe.sampling.constraint if recipe.purpose == "train" else None
        return experience if constraint is None else self._with_allowed(experience, constraint)

    def _with_allowed(self, experience: Experience, constraint: Constraint) -> Experience:
        """The experience with the tokens that its constraint allowed, found anew from the completions."""
        policy, phases = self.learner.policy, self.phases or self.learner.phases
        with phases("rollout", policy.device) as replay:
            completions = [
                (constraint.grammar(attempt.prompt), attempt.completion.token_ids) for attempt in experience.attempts
            ]
            tokens = replace(experience.tokens, allowed=policy.grammars.replay(completions)).to(policy.device)
        seconds = dict(experience.seconds)
        seconds["rollout"] += replay.seconds
        return replace(experience, tokens=tokens, seconds=seconds)

    def _episodes(self, prompts: PromptBatch, environment: Environment) -> Experience:
        recipe, policy = prompts.recipe, self.learner.policy
        names = all_reward_names(self.learner.verifiers)
        episodes = Episodes(environment, policy, recipe.sampling.cap, names, recipe.seed)
        made = Attempts(recipe, episodes.first_turns(prompts), episodes)
        self._sample(made, recipe.group_size)
        return experience_of(made.settled(), recipe, made.seconds, policy.pad_token_id, policy.device)

    def _sample(self, made: Attempts, group_size: int) -> None:
        """Sample and score the turns that have no attempt yet, ``group_size`` of every conversation."""
        waiting = range(len(made.attempts), len(made.turns))
        if not waiting:
            return
        policy, phases = self.learner.policy, self.phases or self.learner.phases
        at_once = max(1, (self.rows_at_once or len(waiting)) // group_size) * group_size
        with Scoring(self.learner.verifiers, made.turns) as scoring:
            made.scoring, made.judging_seconds = scoring, 0.0
            with phases("rollout", policy.device) as rollout, self.forward_context(), cached_casts():
                for start in range(waiting.start, waiting.stop, at_once):
                    rows = list(range(start, min(start + at_once, waiting.stop)))
                    requests = [made.request(row) for row in rows]
                    made.decoding = len(rows)
                    on_finish = partial(made.finish, rows) if made.follower.watches or scoring.any_slow else None
                    completions = self.engine.generate(requests, made.recipe.sampling, on_finish)
                    if on_finish is None:
                        made.finished.update(zip(rows, completions, strict=True))
            with phases("verify", policy.device) as verify:
                inside = made.judging_seconds
                made.judge()
        made.seconds["rollout"] += rollout.seconds - inside
        made.seconds["verify"] += verify.seconds + inside
