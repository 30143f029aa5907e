"""What a training step is given, at its longest: every prompt at its limit, every completion at the cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.environments.base import Environment
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.experience import Demonstrations, Experience, Recipe
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.scoring import reward_names
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict

FEEDBACK_TOKENS = 64
"""What the turn between two attempts is taken to hold."""


def longest_batch(
    module: PolicyModule, data: RolloutDataModule, prompts: int, prompt_tokens: int, group_size: int
) -> Experience | Demonstrations:
    """What the module makes of a batch of the longest prompts, when it asks for attempts or takes the solutions.

    Args:
        module: learns from the batch; it has its policy.
        data: as configured.
        prompts: number of prompts.
        prompt_tokens: tokens of each prompt.
        group_size: completions per prompt.
    """
    cap = data.sampling.cap
    row = Prompt([], solution=_words(cap - 1))  # a terminator follows
    ids = [_numbered(number, prompt_tokens) for number in range(prompts)]
    recipe = replace(data.recipe("train"), group_size=group_size)
    batch = PromptBatch([row] * prompts, ids, [f"train/0/{number}" for number in range(prompts)], recipe)
    return module.batch_from(batch, partial(_attempts, reward_names(module.verifiers)))


def _attempts(names: Sequence[str], prompts: PromptBatch) -> Experience:
    """Attempts that all end at the cap and all have a signal, with as many further ones as the budget allows."""
    recipe, rows = prompts.recipe, list[Attempt]()
    for key, ids in zip(prompts.keys, prompts.prompt_ids, strict=True):
        rows += [_attempt(recipe, names, len(rows) + member, member, key, ids) for member in range(recipe.group_size)]
    refinement = recipe.refinement
    if refinement is not None:
        chosen = min(refinement.budget, recipe.group_size)
        parents = [row for row in range(len(rows)) if row % recipe.group_size < chosen]
        for number in range(2, 2 + refinement.attempts):
            start = len(rows)
            for place, parent in enumerate(parents):
                ids = prompts.prompt_ids[place // chosen]
                turns = (number - 1) * (recipe.sampling.cap + FEEDBACK_TOKENS)
                # It continues the attempt before it, which is of one row alone: nothing is taken to be shared.
                conversation = _numbered(start + place, len(ids) + turns)
                attempt = _attempt(recipe, names, start + place, place % chosen, rows[parent].group, conversation)
                solved = replace(attempt.verdict, correct=True)  # of those that are distilled only such are learned
                under = ids if recipe.distills else None
                rows.append(replace(attempt, number=number, parent=parent, trained_under=under, verdict=solved))
            parents = list(range(start, len(rows)))
    if recipe.environment is not None:
        _add_turns(rows, recipe, names, recipe.environment)
    return experience_of(rows, recipe, {"rollout": 1.0, "verify": 1.0}, pad=0, device=torch.device("cpu"))


def _add_turns(rows: list[Attempt], recipe: Recipe, names: Sequence[str], environment: Environment) -> None:
    """Give every episode as many turns as it may have, the last of which is as long as it may be."""
    cap, turns = recipe.sampling.cap, environment.max_turns
    for root in range(len(rows)):
        parent, start = root, len(rows[root].conversation)
        room = max(environment.max_tokens - cap - start, 0)
        for number in range(2, turns + 1):
            # Nothing is taken to be shared, as for refinement.
            conversation = _numbered(len(rows), start + room * (number - 1) // (turns - 1))
            attempt = _attempt(recipe, names, len(rows), root % recipe.group_size, rows[root].group, conversation)
            rows.append(replace(attempt, number=number, parent=parent))
            parent = len(rows) - 1


def _attempt(
    recipe: Recipe, names: Sequence[str], row: int, member: int, group: str, conversation: list[int]
) -> Attempt:
    """A completion unlike any other; no member of a group has the mean reward of the group. The first member is
    correct, the others have feedback."""
    length = recipe.sampling.cap
    zeros = [0.0] * length
    return Attempt(
        Prompt([{"role": "user", "content": _words(len(conversation))}]),
        conversation,
        group=group,
        completion=Completion(_numbered(row, length), _words(length), FinishReason.STOP, zeros, zeros),
        verdict=Verdict(correct=member == 0, format_valid=True, feedback=_words(FEEDBACK_TOKENS)),
        reward=2.0**-member,
        rewards_by_verifier=dict.fromkeys(names, 2.0**-member),
    )


def _numbered(number: int, length: int) -> list[int]:
    """Token ids that differ from those of any other number."""
    return [number] + [0] * (length - 1)


def _words(count: int) -> str:
    """A text of ``count`` tokens: the weightless tokenizer has one per word."""
    return " ".join(["word"] * count)
