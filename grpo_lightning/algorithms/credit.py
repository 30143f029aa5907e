"""What an algorithm makes of the rows of an experience: credit between attempts, advantages within groups."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.rollout.experience import Experience


def credited_rewards(experience: Experience, rewards_N: Tensor | None = None) -> Tensor:
    """``[N]``: rewards with what following attempts credit; NaN where there is nothing to learn from.

    In context an attempt is credited with ``max(r, gamma * r')``, where the attempt that follows it got ``r'`` (MURPHY,
    arXiv 2511.07833); one that could not be judged credits nothing. A distilled attempt credits nothing: it joins the
    group of the attempt that it follows.

    Args:
        experience: the rows of a step.
        rewards_N: default: ``experience.reward_N``.
    """
    rewards_N = experience.reward_N if rewards_N is None else rewards_N
    rewards_N = torch.where(experience.scored_N, rewards_N, torch.nan)
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
