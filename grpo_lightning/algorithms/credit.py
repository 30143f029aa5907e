"""What an algorithm makes of the rows of an experience: credit between attempts, advantages within groups."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.advantages import Advantage, RewardMoments
from grpo_lightning.rollout.experience import Experience


def credited_rewards(experience: Experience) -> Tensor:
    """``[N]``: rewards with what following attempts credit; NaN where there is nothing to learn from.

    In context an attempt is credited with ``max(r, gamma * r')``, where the attempt that follows it got ``r'`` (MURPHY,
    arXiv 2511.07833); one that could not be judged credits nothing. A distilled attempt credits nothing: it joins the
    group of the attempt that it follows.
    """
    rewards_N = torch.where(experience.scored_N, experience.reward_N, torch.nan)
    recipe = experience.recipe
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


def row_advantages(rewards_N: Tensor, group_N: Tensor, advantage: Advantage, moments: RewardMoments) -> Tensor:
    """Advantages of rows in groups of any sizes: missing members are NaN to the :class:`Advantage`."""
    places: list[int] = []
    sizes: dict[int, int] = {}
    for group in group_N.tolist():
        places.append(sizes.setdefault(group, 0))
        sizes[group] += 1
    order = {group: index for index, group in enumerate(sizes)}
    row_N = torch.tensor([order[group] for group in group_N.tolist()], device=rewards_N.device)
    place_N = torch.tensor(places, device=rewards_N.device)
    rewards_BG = rewards_N.new_full((len(sizes), max(sizes.values())), torch.nan)
    rewards_BG[row_N, place_N] = rewards_N
    return advantage(rewards_BG, moments)[row_N, place_N]
