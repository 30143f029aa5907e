"""Attempts as the rows of an experience, and ragged rows as padded tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from grpo_lightning.rollout.experience import Experience, Recipe
from grpo_lightning.rollout.resampling import is_silent
from grpo_lightning.types import Attempt, TokenRows


def experience_of(
    attempts: Sequence[Attempt],
    recipe: Recipe,
    seconds: Mapping[str, float],
    pad: int,
    device: torch.device,
    replaced: Sequence[Attempt] = (),
) -> Experience:
    """Lay attempts out as rows.

    Groups: first attempts at the same prompt. The attempts that follow others are a group per prompt and number, or
    join the prompt's group where they are distilled. How turns of episodes are compared:
    :class:`grpo_lightning.algorithms.credit.EpisodeGroups`.

    Args:
        attempts: each comes after its parent; ``Attempt.parent`` is the parent's place.
        recipe: how they were made.
        seconds: how long the phases took.
        pad: token id for the unused places.
        device: where the tensors live.
        replaced: attempts that others have replaced, one group after another.
    """
    is_followed = recipe.refinement is not None or recipe.environment is not None
    rows = _in_rounds(attempts) if is_followed else list(attempts)
    tokens = token_rows([attempt.context for attempt in rows], [attempt.completion.token_ids for attempt in rows], pad)
    names = {attempt.group: None for attempt in rows}
    index = {name: place for place, name in enumerate(names)}
    later = 0 if recipe.distills else len(index)
    tensor = partial(torch.tensor, device=device)
    distilled = [attempt.trained_under is not None for attempt in rows]
    scored = [
        not math.isnan(attempt.reward) and (attempt.verdict.correct or not is_distilled)
        for attempt, is_distilled in zip(rows, distilled, strict=True)
    ]
    scored_N = tensor(scored)
    counted_N = scored_N
    if recipe.resample is not None and recipe.resample.keep == "signal":
        size = recipe.group_size
        silent = [is_silent(rows[start : start + size]) for start in range(0, len(rows), size)]
        counted_N = scored_N & ~tensor(silent).repeat_interleave(size)
    return Experience(
        recipe=recipe,
        attempts=rows,
        first=sum(attempt.number == 1 for attempt in rows),
        tokens=tokens.to(device),
        sampler_logprobs_NT=right_padded([attempt.completion.logprobs for attempt in rows]).to(device),
        reward_N=tensor([attempt.reward for attempt in rows]),
        group_N=tensor([index[attempt.group] + later * (attempt.number - 1) for attempt in rows]),
        scored_N=scored_N,
        distilled_N=tensor(distilled),
        truncated_N=tensor([attempt.is_truncated for attempt in rows]),
        seconds=seconds,
        counted_N=counted_N,
        learned_N=counted_N,
        replaced=replaced,
    )


def _in_rounds(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts by number, each round in the order of the round before."""
    rows: list[Attempt] = []
    place: dict[int | None, int] = {None: 0}
    for number in range(1, 1 + max(attempt.number for attempt in attempts)):
        members = [row for row, attempt in enumerate(attempts) if attempt.number == number]
        for row in sorted(members, key=lambda row: place[attempts[row].parent]):
            place[row] = len(rows)
            attempt = attempts[row]
            rows.append(attempt if attempt.parent is None else replace(attempt, parent=place[attempt.parent]))
    return rows


def token_rows(prompts: Sequence[list[int]], completions: Sequence[list[int]], pad: int) -> TokenRows:
    """Lay prompts and completions side by side, right padded."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    return TokenRows(
        ids_NL=torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        prompt_lengths_N=torch.tensor([len(prompt) for prompt in prompts]),
        completion_lengths_N=torch.tensor([len(completion) for completion in completions]),
    )


def right_padded(rows: Sequence[list[float]]) -> Tensor:
    """Rows of numbers as one float32 tensor, with 0 after each row's end."""
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
