"""What an algorithm makes of the rows of an experience: credit between attempts, advantages within groups."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_lightning.rollout.experience import Experience

EpisodeCredit = Literal["return", "return_to_go", "turn"]
"""What a turn of an episode is credited with: see :func:`episode_credits`."""


def credited_rewards(
    experience: Experience, rewards_N: Tensor | None = None, credit: EpisodeCredit = "return", discount: float = 1.0
) -> Tensor:
    """``[N]``: rewards with what following attempts credit; NaN where there is nothing to learn from.

    In context an attempt is credited with ``max(r, gamma * r')``, where the attempt that follows it got ``r'`` (MURPHY,
    arXiv 2511.07833); one that could not be judged credits nothing. A distilled attempt credits nothing: it joins the
    group of the attempt that it follows.

    The turns of an episode: :func:`episode_credits`.

    Args:
        experience: the rows of a step.
        rewards_N: default: ``experience.reward_N``.
        credit: what the turns of an episode are credited with.
        discount: factor per turn of an episode.
    """
    rewards_N = experience.reward_N if rewards_N is None else rewards_N
    rewards_N = torch.where(experience.scored_N, rewards_N, torch.nan)
    recipe = experience.recipe
    if recipe.environment is not None:
        return episode_credits(experience, rewards_N, credit, discount)
    if recipe.refinement is None or recipe.distills:
        return rewards_N
    later = range(experience.first, len(experience))
    # From the last round to the second, for each round passes its credit to the one before it.
    for number in sorted({experience.attempts[row].number for row in later}, reverse=True):
        rows = [row for row in later if experience.attempts[row].number == number]
        parents = [experience.attempts[row].parent for row in rows]
        row_K, parent_K = (torch.tensor(index, device=rewards_N.device) for index in (rows, parents))
        credit_K = (recipe.refinement.gamma * rewards_N[row_K]).nan_to_num(-torch.inf)
        rewards_N[parent_K] = torch.maximum(rewards_N[parent_K], credit_K)
    return rewards_N


def episode_credits(experience: Experience, rewards_N: Tensor, credit: EpisodeCredit, discount: float) -> Tensor:
    """``[N]``: what each turn is credited with; NaN for all turns of an episode in which something broke.

    Args:
        experience: the rows of a step.
        rewards_N: rewards of the turns. A turn that is not the last of its episode may have none (NaN).
        credit: ``return``: every turn with the return of the episode, ``sum_t discount^t r_t`` from the first turn on;
            ``return_to_go``: with that from this turn on; ``turn``: with the turn's reward.
        discount: factor per turn.
    """
    parents = [attempt.parent for attempt in experience.attempts]
    followed = set(parents)
    rewards = [0.0 if reward != reward and row in followed else reward for row, reward in enumerate(rewards_N.tolist())]
    returns = list(rewards)
    later = range(experience.first, len(experience))
    for row in reversed(later):  # a turn comes after its parent
        returns[parents[row] or 0] += discount * returns[row]
    whole = [returns[root] for root in experience.root_rows]
    credited = {"return": whole, "return_to_go": returns, "turn": rewards}[credit]
    broken = [whole_return != whole_return for whole_return in whole]
    return rewards_N.new_tensor(
        [float("nan") if is_broken else value for value, is_broken in zip(credited, broken, strict=True)]
    )


def following_turns(experience: Experience) -> Tensor:
    """``[N]``: the row of the turn that follows each turn of an episode, -1 for the last ones."""
    next_N = torch.full((len(experience),), -1)
    for row, attempt in enumerate(experience.attempts):
        if attempt.parent is not None:
            next_N[attempt.parent] = row
    return next_N.to(experience.reward_N.device)


class Groups:
    """Rows in groups of any sizes, as the rows of a table.

    Args:
        group_N: rows with equal numbers are a group.
    """

    def __init__(self, group_N: Tensor) -> None:
        places: list[int] = []
        sizes: dict[int, int] = {}
        for group in group_N.tolist():
            places.append(sizes.setdefault(group, 0))
            sizes[group] += 1
        order = {group: index for index, group in enumerate(sizes)}
        self._row_N = torch.tensor([order[group] for group in group_N.tolist()], device=group_N.device)
        self._place_N = torch.tensor(places, device=group_N.device)
        self._shape = (len(sizes), max(sizes.values()))

    def table(self, values_N: Tensor) -> Tensor:
        """``values_BG``: one group per row, NaN for missing members."""
        values_BG = values_N.new_full(self._shape, torch.nan)
        values_BG[self._row_N, self._place_N] = values_N
        return values_BG

    def rows(self, values_BG: Tensor) -> Tensor:
        """The values ``[N]`` of a table, one per row."""
        return values_BG[self._row_N, self._place_N]


class EpisodeGroups(Groups):
    """The turns of episodes as rows of a table: one row per prompt and turn, one column per episode.

    An episode that is over by a turn is in its row too: with 0, which is what it gets from there on, or under
    ``return`` with its return. So what is compared with a turn's credit does not depend on how long its own episode, or
    any other one, went on. A mean over the episodes that reach a turn would: added up over the turns that an episode
    has, it is a baseline that the policy chooses by ending the episode, and the gradient is biased (verl#7244).

    Args:
        experience: the rows of a step.
        credit: what the turns are credited with.
    """

    def __init__(self, experience: Experience, credit: EpisodeCredit) -> None:
        size, first = experience.recipe.group_size, experience.first
        device = experience.reward_N.device
        turn_N = torch.tensor([attempt.number - 1 for attempt in experience.attempts], device=device)
        root_N = torch.tensor(experience.root_rows, device=device)
        self._row_N = turn_N * (first // size) + root_N // size
        self._place_N = root_N % size
        self._shape = (int(turn_N.max() + 1) * (first // size), size)
        self._first, self._credit = first, credit

    def table(self, values_N: Tensor) -> Tensor:
        first_BG = values_N[: self._first].view(-1, self._shape[1])
        if self._credit != "return":
            first_BG = torch.where(first_BG.isnan(), torch.nan, 0.0)
        values_BG = first_BG.repeat(self._shape[0] // len(first_BG), 1)
        values_BG[self._row_N, self._place_N] = values_N
        return values_BG


def groups_of(experience: Experience, credit: EpisodeCredit) -> Groups:
    """The rows that are compared with each other."""
    if experience.recipe.environment is not None:
        return EpisodeGroups(experience, credit)
    return Groups(experience.group_N)
