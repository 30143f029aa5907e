"""The attempts at a batch of prompts in the making: sampled, judged, and some of them followed by others."""

from __future__ import annotations

import time
from collections.abc import Sequence

from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Attempt, Completion, Turn


class Follower:
    """Decides which turns follow those that the policy has taken. This one: none."""

    watches: bool = False
    """Whether it takes completions as they finish, while others still decode."""

    temperature: float | None = None
    """Of the turns that follow. Default: that of the recipe."""

    def follow(self, made: Attempts, done: Sequence[int]) -> list[Turn]:
        """Take turns that have just finished.

        Args:
            made: all turns so far. What verifiers are to judge is handed over to them here.
            done: the rows of the turns that have finished.

        Returns:
            The turns to be sampled next. They become the next rows.
        """
        made.hand_over(done)
        return []

    def settled(self, attempts: list[Attempt]) -> list[Attempt]:
        """The attempts, one per row, when all have finished and verifiers have judged what was handed over."""
        return attempts


class Attempts:
    """A table with a row per turn.

    Args:
        recipe: how they are made.
        turns: first turns; those that follow are appended.
        follower: decides which turns follow.
    """

    def __init__(self, recipe: Recipe, turns: list[Turn], follower: Follower) -> None:
        self.recipe = recipe
        self.turns = turns
        self.follower = follower
        self.attempts: dict[int, Attempt] = {}
        """Judged, by row, or not to be judged."""
        self.finished: dict[int, Completion] = {}
        """What is not judged yet, by row."""
        self.decoding = 0
        """Rows that the engine has not handed over yet."""
        self.scoring: Scoring
        self.seconds = {"rollout": 0.0, "verify": 0.0}
        self.judging_seconds = 0.0

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
        self.finished.update(zip(done, completions, strict=True))
        self.decoding -= len(done)
        following = self.append(self.follower.follow(self, done))
        self.decoding += len(following)
        rows += following
        return [self.request(row, self.follower.temperature) for row in following]

    def append(self, turns: list[Turn]) -> range:
        """Add turns, and return their rows."""
        self.turns += turns
        return range(len(self.turns) - len(turns), len(self.turns))

    def hand_over(self, rows: Sequence[int]) -> None:
        """Let slow verifiers begin to judge some finished rows."""
        self.scoring.hand_over(list(rows), [self.finished[row] for row in rows])

    def judge(self) -> None:
        """Judge what has finished."""
        started = time.perf_counter()
        rows = sorted(self.finished)
        completions = [self.finished[row] for row in rows]
        self.attempts.update(zip(rows, self.scoring.attempts(rows, completions), strict=True))
        self.finished.clear()
        self.judging_seconds += time.perf_counter() - started

    def settled(self) -> list[Attempt]:
        """All attempts, one per row."""
        return self.follower.settled([self.attempts[row] for row in range(len(self.turns))])
