"""Refinement during a rollout: which failures are followed by another attempt, while others still decode."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.attempts import Attempts, Follower
from grpo_lightning.rollout.refinement import RefinementConfig, can_be_refined, choose, follow
from grpo_lightning.types import Attempt, Turn


class Rounds(Follower):
    """Follows failures within the refinement's budget.

    Args:
        refinement: which failures, and how.
        policy: renders the turn between two attempts.
        firsts: number of first attempts.
        group_size: first attempts per prompt.
    """

    watches = True

    def __init__(self, refinement: RefinementConfig, policy: Policy, firsts: int, group_size: int) -> None:
        self.refinement = refinement
        self.temperature = refinement.temperature
        self.policy = policy
        self.budget = refinement.budget * (firsts // group_size)
        self.rounds = [list(range(firsts)), *([] for _ in range(refinement.attempts))]
        """Rows of the first attempts, of those that follow them, ..."""
        self.followed: list[set[int]] = [set() for _ in range(refinement.attempts)]
        """Places in each round but the last of those that another one follows."""

    def follow(self, made: Attempts, done: Sequence[int]) -> list[Turn]:
        made.hand_over(done)
        # Which failures are followed must not depend on how slow a verifier is: slow ones are queried last.
        spent = all(len(places) == self.budget for places in self.followed)
        if spent or (made.scoring.any_slow and made.decoding):
            return []
        made.judge()
        count, turns = len(made.turns), list[Turn]()
        for number, followed in enumerate(self.followed):
            rows = self.rounds[number]
            groups = [made.turns[row].group if row < count else turns[row - count].group for row in rows]
            for place in choose([made.attempts.get(row) for row in rows], groups, self.budget, followed):
                followed.add(place)
                self.rounds[number + 1].append(count + len(turns))
                turns.append(self._after(made.attempts[rows[place]], rows[place]))
        return turns

    def follow_in_evaluation(self, made: Attempts) -> list[Turn]:
        """A turn after each failure that ``val_feedback`` has feedback for."""
        on_verdict = self.refinement.val_feedback == "verdict"
        return [
            self._after(attempt, row)
            for row, attempt in made.attempts.items()
            if can_be_refined(attempt) and (on_verdict or not attempt.verdict.format_valid)
        ]

    def _after(self, attempt: Attempt, row: int) -> Turn:
        return follow(self.policy.tokenizer, attempt, row, self.refinement, self.policy.terminators)
