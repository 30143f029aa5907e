"""From rollouts to what is learned from: one row a completion, credit between attempts, the targets of an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.advantages import Advantage, RewardMoments
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.types import FinishReason, Rollout, RolloutBatch, TokenRows


@dataclass(frozen=True)
class LearningRows:
    """The rollouts of a step, further attempts behind the first ones, in rows ``N``.

    Args:
        tokens: what each row is trained under.
        rollouts: for dumps and counts.
        logprobs_NT: the sampler's log-probs, the old ones of the ratio.
        rewards_N: with what a following attempt credits; NaN where there is nothing to learn from.
        groups: which rows are compared with each other.
        scored_N: False where a verifier broke.
        truncated_N: ran into the cap.
        distilled_N: learned under another prompt than it was sampled under, so without a ratio.
    """

    tokens: TokenRows
    rollouts: list[Rollout]
    logprobs_NT: Tensor
    rewards_N: Tensor
    groups: list[int]
    scored_N: Tensor
    truncated_N: Tensor
    distilled_N: Tensor

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Targets:
    """What the update works towards; all of it is fixed before the first optimizer step.

    Args:
        rows: the attempts.
        advantages: ``[N]``, one a row, or ``[N, T]``, one a token.
        counted_N: rows that the loss is divided by: scored ones, with or without signal.
        learned_N: those of them that contribute a gradient.
        old_NT: log-probs of the policy that the ratio is taken to; ``None`` where it is the present one.
        reference_NT: the reference's log-probs; ``None`` without KL.
        temperature: of the log-probs.
        max_new_tokens: the cap on completions.
    """

    rows: LearningRows
    advantages: Tensor
    counted_N: Tensor
    learned_N: Tensor
    old_NT: Tensor | None
    reference_NT: Tensor | None
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Minibatch:
    """One optimizer step's part of a rollout.

    Args:
        targets: of the whole rollout.
        sequences: completions that the loss is divided by, over all ranks.
        tokens: their tokens; under ``bnpo`` those of this rank.
        first: whether the policy is still the one that sampled.
    """

    targets: Targets
    sequences: float
    tokens: float
    first: bool


def learning_rows(batch: RolloutBatch, refinement: RefinementConfig | None = None) -> LearningRows:
    """All attempts of a step.

    Without refinement: the rollouts, in their groups. With it, by its mode:

    - ``in_context``: an attempt is credited with ``max(r, gamma * r of the attempt that followed it)``; the attempts of
      a round at the same prompt are a group of their own.
    - ``distill``: the successful further attempts join the prompt's group.
    """
    device = batch.rewards_N.device
    rounds = batch.refinements
    prompts = len(batch) // batch.group_size
    groups = [[row // batch.group_size for row in range(len(batch))], *(one.groups for one in rounds)]
    rewards = [batch.rewards_N, *(one.rewards_N for one in rounds)]
    distilled = bool(rounds) and refinement is not None and refinement.mode == "distill"
    if distilled:
        won = [torch.tensor([rollout.verdict.correct for rollout in one.rollouts], device=device) for one in rounds]
        kept = [torch.where(correct, one.rewards_N, torch.nan) for correct, one in zip(won, rounds, strict=True)]
        rewards = [batch.rewards_N, *kept]
    else:
        gamma = refinement.gamma if refinement is not None else 0.0
        for index in reversed(range(len(rounds))):
            rewards[index] = credited(rewards[index], rewards[index + 1], rounds[index].parents, gamma)
        groups = [[group + number * prompts for group in part] for number, part in enumerate(groups)]
    rollouts = [*batch.rollouts, *(rollout for one in rounds for rollout in one.rollouts)]
    cut = [rollout.completion.finish_reason is FinishReason.LENGTH for rollout in rollouts]
    rewards_N = torch.cat(rewards)
    return LearningRows(
        tokens=_stacked([batch.tokens, *(one.tokens for one in rounds)]),
        rollouts=rollouts,
        logprobs_NT=_side_by_side([batch.logprobs_NT, *(one.logprobs_NT for one in rounds)]),
        rewards_N=rewards_N,
        groups=[group for part in groups for group in part],
        scored_N=~rewards_N.isnan(),
        truncated_N=torch.tensor(cut, device=device),
        distilled_N=torch.arange(len(rollouts), device=device) >= (len(batch) if distilled else len(rollouts)),
    )


def credited(rewards_N: Tensor, next_K: Tensor, parents: Sequence[int], gamma: float) -> Tensor:
    """``max(r, gamma * r')`` where an attempt with reward ``r'`` followed; MURPHY, arXiv 2511.07833.

    A following attempt that could not be judged (NaN) credits nothing.
    """
    rewards_N = rewards_N.clone()
    index_K = torch.tensor(parents, device=rewards_N.device)
    rewards_N[index_K] = torch.maximum(rewards_N[index_K], (gamma * next_K).nan_to_num(-torch.inf))
    return rewards_N


def row_advantages(rows: LearningRows, advantage: Advantage, moments: RewardMoments) -> Tensor:
    """Advantages of rows in groups of any sizes: missing members are NaN to the :class:`Advantage`."""
    rewards_K, groups = rows.rewards_N, rows.groups
    places, sizes = [], dict.fromkeys(groups, 0)
    for group in groups:
        places.append(sizes[group])
        sizes[group] += 1
    order = {group: index for index, group in enumerate(sizes)}
    row_K = torch.tensor([order[group] for group in groups], device=rewards_K.device)
    place_K = torch.tensor(places, device=rewards_K.device)
    rewards_BG = rewards_K.new_full((len(sizes), max(sizes.values())), torch.nan)
    rewards_BG[row_K, place_K] = rewards_K
    return advantage(rewards_BG, moments)[row_K, place_K]


def _stacked(parts: Sequence[TokenRows]) -> TokenRows:
    return TokenRows(
        ids_NL=_side_by_side([part.ids_NL for part in parts]),
        prompt_lengths_N=torch.cat([part.prompt_lengths_N for part in parts]),
        completion_lengths_N=torch.cat([part.completion_lengths_N for part in parts]),
    )


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several widths as one tensor, with 0 behind the shorter ones."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
