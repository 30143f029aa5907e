"""Dynamic sampling during a rollout: groups without a signal are replaced while others still decode."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from grpo_lightning.rollout.attempts import Attempts, Follower
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.resampling import Places
from grpo_lightning.types import Attempt, Turn


class Replacing(Follower):
    """Puts other groups in the places of those without a signal.

    Args:
        prompts: the prompts, with those that replace them.
        tokenizer: the policy's.
    """

    watches = True

    def __init__(self, prompts: PromptBatch, tokenizer: PreTrainedTokenizerBase) -> None:
        self.prompts = prompts
        self.tokenizer = tokenizer
        size = prompts.recipe.group_size
        first = [range(place * size, (place + 1) * size) for place in range(len(prompts.prompts))]
        self.places = Places(first, len(prompts.replacements))

    def follow(self, made: Attempts, done: Sequence[int]) -> list[Turn]:
        made.hand_over(done)
        # Slow verifiers are queried when all have finished.
        if self.places.settled or (made.scoring.any_slow and made.decoding):
            return []
        made.judge()
        count, turns = len(made.turns), list[Turn]()
        for place, number in self.places.silent(made.attempts):
            start = count + len(turns)
            turns += self.prompts.replacements[number - 1].turns(place, self.tokenizer)
            self.places.replace(place, number, range(start, count + len(turns)))
        return turns

    def settled(self, attempts: list[Attempt]) -> list[Attempt]:
        """The attempts of the groups that stay, by place."""
        return [attempts[row] for row in self.places.kept]

    def replaced(self, made: Attempts) -> list[Attempt]:
        """The attempts of the other groups, one group after another."""
        return [made.attempts[row] for row in self.places.replaced]
