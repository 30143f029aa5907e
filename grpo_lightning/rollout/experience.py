"""One table per step: the attempts as rows, with what they were rewarded, and what an algorithm makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from grpo_lightning.environments.base import Environment
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.rollout.resampling import ResampleConfig
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Attempt, TokenRows, Verdict

_Value = TypeVar("_Value")

Purpose = Literal["train", "val", "test", "predict"]


@dataclass(frozen=True)
class Recipe:
    """How attempts at a batch of prompts are made.

    Args:
        purpose: what they are for. Only in training do attempts that follow others cost the refinement's budget.
        group_size: first attempts per prompt.
        sampling: temperature, truncation, length.
        refinement: which failed attempts are followed by another; ``None``: none.
        environment: replies to the policy, in episodes of several turns; ``None``: every attempt is one turn.
        seed: seeds the sampling, together with each attempt's key.
        step: training steps done before.
        resample: how groups without a signal are replaced; ``None``: not at all.
    """

    purpose: Purpose = "train"
    group_size: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    refinement: RefinementConfig | None = None
    environment: Environment | None = None
    seed: int = 0
    step: int = 0
    resample: ResampleConfig | None = None

    @property
    def distills(self) -> bool:
        """Whether attempts that follow others are learned under the original prompt."""
        return self.refinement is not None and self.refinement.mode == "distill"


@dataclass(frozen=True)
class Ahead:
    """How rollouts were made while the step before was learned.

    Args:
        age: optimizer steps that the policy has made since the weights that sampled.
        learner_waits: share of the time, from their beginning to their use, in which the trainer waited for them;
            ``None`` where something else came between, such as a validation.
        engine_waits: share in which they were ready and the engine had nothing to do; ``None`` likewise.
    """

    age: int
    learner_waits: float | None = None
    engine_waits: float | None = None


class Outcome(NamedTuple):
    """What came of a first attempt, or of the episode that it begins.

    Args:
        verdict: on the attempt, or the episode.
        reward: sum over all turns; NaN where a verifier or the environment broke.
        rewards_by_verifier: rewards of the last turn, by verifier.
        tokens: tokens that the policy sampled.
        turns: turns that the policy took.
        is_truncated: whether the last turn ran into the cap.
    """

    verdict: Verdict
    reward: float
    rewards_by_verifier: Mapping[str, float]
    tokens: int
    turns: int
    is_truncated: bool


@dataclass(frozen=True)
class Experience:
    """The attempts of a step as objects and as tensors: one row each.

    First attempts come first, those of a group next to each other; then the attempts that follow them, by number. What
    an algorithm computes is added by ``dataclasses.replace``; nothing is changed in place.

    Args:
        recipe: how they were made.
        attempts: ``N`` of them.
        first: how many of them are first attempts.
        tokens: what each is learned under, with its completion.
        sampler_logprobs_NT: the sampler's log-prob of each completion token at the recipe's temperature, before
            truncation (nats); 0 after each row's end.
        reward_N: ``Attempt.reward``; NaN where a verifier broke.
        group_N: rows with equal numbers are compared with each other.
        scored_N: rows that count in their group and in the loss: those with a reward, and of the attempts that are
            distilled only the correct ones.
        distilled_N: rows learned under another prompt than they were sampled under, so without a ratio.
        truncated_N: rows that ran into the cap.
        seconds: how long the phases took, by name.
        counted_N: rows that the loss is divided by, with or without signal.
        learned_N: the counted rows that contribute a gradient.
        advantages: ``[N]``, one per row, or ``[N, T]``, one per token, 0 where there is nothing to learn; ``None``
            until an algorithm has computed them.
        old_NT: log-probs of the policy that the ratio is taken to; ``None`` where it is the present one.
        reference_NT: the reference's log-probs of the learned rows; ``None`` without KL.
        sequences: completions that the loss of the present optimizer step is divided by, over all ranks.
        sequence_tokens: their tokens; under ``bnpo`` those of this rank.
        is_first_step: whether the policy is still as it was when the step began.
        ahead: how the rollouts were made, with ``data.rollouts_ahead``; ``None`` where the present policy sampled.
        replaced: attempts of groups without a signal that others have replaced; not rows, and not learned from.
    """

    recipe: Recipe
    attempts: list[Attempt]
    first: int
    tokens: TokenRows
    sampler_logprobs_NT: Tensor
    reward_N: Tensor
    group_N: Tensor
    scored_N: Tensor
    distilled_N: Tensor
    truncated_N: Tensor
    seconds: Mapping[str, float]
    counted_N: Tensor
    learned_N: Tensor
    advantages: Tensor | None = None
    old_NT: Tensor | None = None
    reference_NT: Tensor | None = None
    sequences: float = 1.0
    sequence_tokens: float = 1.0
    is_first_step: bool = True
    ahead: Ahead | None = None
    replaced: Sequence[Attempt] = ()

    def __len__(self) -> int:
        return len(self.attempts)

    @property
    def first_attempts(self) -> list[Attempt]:
        return self.attempts[: self.first]

    @property
    def groups(self) -> list[list[Attempt]]:
        """The first attempts, one list per group."""
        return self.in_groups(self.first_attempts)

    def in_groups(self, values: Sequence[_Value]) -> list[list[_Value]]:
        """Split values of the first attempts, such as :attr:`answers` or :attr:`outcomes`, into lists per group."""
        size = self.recipe.group_size
        return [list(values[start : start + size]) for start in range(0, len(values), size)]

    @property
    def sampled(self) -> list[Attempt]:
        """All first attempts of the step, one group after another, with those that were replaced.

        Whether a group is replaced depends on its own rewards alone, and a prompt replaces another one unseen: means
        over these are those of the policy at ordinary prompts (Wald's identity), which those over the rows are not.
        """
        return [*self.answers, *self.replaced]

    @property
    def root_rows(self) -> list[int]:
        """For each attempt the row of the first one of its conversation, which may be itself."""
        root = list(range(self.first))
        for row in range(self.first, len(self)):
            parent = self.attempts[row].parent
            assert parent is not None
            root.append(root[parent])
        return root

    @property
    def last_attempts(self) -> list[Attempt]:
        """For each first attempt the last one of its conversation, which may be itself."""
        return [self.attempts[row] for row in {root: row for row, root in enumerate(self.root_rows)}.values()]

    @property
    def answers(self) -> list[Attempt]:
        """For each first attempt what was judged of it: the last turn of its episode, or the attempt itself."""
        return self.first_attempts if self.recipe.environment is None else self.last_attempts

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of each first attempt, replaced ones too, without those that follow it under refinement."""
        turns: list[list[Attempt]] = [[] for _ in range(self.first)]
        count = self.first if self.recipe.environment is None else len(self)
        for attempt, root in zip(self.attempts[:count], self.root_rows, strict=False):
            turns[root].append(attempt)
        return [
            Outcome(
                verdict=taken[-1].verdict,
                reward=sum(turn.reward for turn in taken),
                rewards_by_verifier=taken[-1].rewards_by_verifier,
                tokens=sum(len(turn.completion.token_ids) for turn in taken),
                turns=len(taken),
                is_truncated=taken[-1].is_truncated,
            )
            for taken in [*turns, *([attempt] for attempt in self.replaced)]
        ]

    def rewards_by_name(self, name: str) -> Tensor:
        """``[N]``: the reward of one verifier, or of one of its parts; NaN where there is none."""
        rewards = [attempt.rewards_by_verifier.get(name, math.nan) for attempt in self.attempts]
        return torch.tensor(rewards, dtype=self.reward_N.dtype, device=self.reward_N.device)

    def of_groups(self, values_N: Tensor) -> Tensor:
        """``values_BG`` of the first attempts, one group per row."""
        return values_N[: self.first].view(-1, self.recipe.group_size)

    def row_advantages(self, row: int) -> Tensor | None:
        """The advantage of a row, ``[1]``, or those of its tokens; ``None`` if there are none."""
        if self.advantages is None:
            return None
        length = len(self.attempts[row].completion.token_ids)
        return self.advantages[row, :length] if self.advantages.dim() == 2 else self.advantages[row : row + 1]


@dataclass(frozen=True)
class EvaluationBatch:
    """The attempts at a batch of prompts of an evaluation.

    Args:
        single: one first attempt per prompt, for accuracy, and what follows it under refinement.
        sampled: several attempts per prompt, for pass@k; ``None`` where that is not asked for.
    """

    single: Experience
    sampled: Experience | None


@dataclass(frozen=True)
class Demonstrations:
    """Worked solutions to a batch of prompts, to be learned from directly.

    Args:
        recipe: how the batch is made.
        tokens: prompts with their solutions.
    """

    recipe: Recipe
    tokens: TokenRows
