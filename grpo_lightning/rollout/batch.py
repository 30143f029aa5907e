"""From completions to a :class:`RolloutBatch`: verdicts, rewards, tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grpo_lightning.types import Completion, Prompt, Rollout, Sample, TokenRows, Verdict
from grpo_lightning.verifiers.base import Verifier, judge


def score(
    verifiers: Mapping[str, Verifier], prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Rollout]:
    """Judge every completion with every verifier.

    With several verifiers the reward is the mean of theirs, and a completion is correct (or format-valid) if all of
    them find it so. One that breaks leaves the rollout without a reward: a part of a reward would be a wrong one.

    Args:
        verifiers: by the name their rewards are logged under.
        prompts: one a completion.
        completions: as sampled.
    """
    samples = [
        Sample(prompt.messages, completion.text, prompt.answer, prompt.metadata, completion.finish_reason)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    by_verifier = {name: judge(verifier, samples) for name, verifier in verifiers.items()}
    rollouts = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        verdicts = [verdicts[row] for verdicts in by_verifier.values()]
        rewards = {name: verifiers[name].reward(by_verifier[name][row]) for name in verifiers}
        reward = sum(rewards.values()) / len(rewards)
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        if not errors and not math.isfinite(reward):
            errors = [f"a reward of {reward} from {', '.join(n for n, r in rewards.items() if not math.isfinite(r))}"]
        verdict = Verdict(
            correct=not errors and all(verdict.correct for verdict in verdicts),
            format_valid=not errors and all(verdict.format_valid for verdict in verdicts),
            feedback=" ".join(verdict.feedback for verdict in verdicts if verdict.feedback),
            error="; ".join(errors) or None,
        )
        rollouts.append(Rollout(prompt, completion, verdict, math.nan if errors else reward, rewards))
    return rollouts


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
    """Rows of numbers as one float32 tensor, with 0 behind each row's end."""
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
