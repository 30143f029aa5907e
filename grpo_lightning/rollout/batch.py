"""From completions to a :class:`RolloutBatch`: verdicts, rewards, tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from grpo_lightning.types import Completion, Prompt, Rollout, Sample, TokenRows, Verdict
from grpo_lightning.verifiers.base import Verifier, rewarded


def score(
    verifiers: Mapping[str, Verifier], prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Rollout]:
    """Judge every completion with every verifier.

    With several verifiers the reward is the mean of theirs, and a completion is correct (or format-valid) if all of
    them find it so; those that abstain do not count. One that breaks leaves the rollout without a reward: a part of a
    reward would be a wrong one.

    Args:
        verifiers: by the name their rewards are logged under.
        prompts: one a completion.
        completions: as sampled.
    """
    samples = [
        Sample(
            prompt.messages,
            completion.text,
            prompt.answer,
            prompt.metadata,
            completion.finish_reason,
            completion.token_ids,
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    by_verifier = {name: rewarded(verifier, samples) for name, verifier in verifiers.items()}
    rollouts = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        verdicts = {name: column[row][0] for name, column in by_verifier.items()}
        rewards = {name: column[row][1] for name, column in by_verifier.items()}
        verdict = _together(verdicts)
        reward = math.nan if verdict.error else fmean(rewards[name] for name in verdicts if verdicts[name].judged)
        rollouts.append(Rollout(prompt, completion, verdict, reward, rewards | _part_rewards(verifiers, verdicts)))
    return rollouts


def _together(verdicts: Mapping[str, Verdict]) -> Verdict:
    errors = [f"{name}: {verdict.error}" for name, verdict in verdicts.items() if verdict.error is not None]
    judged = [verdict for verdict in verdicts.values() if verdict.judged]
    if not errors and not judged:
        errors = [f"no verifier has a say on this sample: {', '.join(verdicts)} abstained"]
    return Verdict(
        correct=not errors and all(verdict.correct for verdict in judged),
        format_valid=not errors and all(verdict.format_valid for verdict in judged),
        feedback=" ".join(verdict.feedback for verdict in judged if verdict.feedback),
        error="; ".join(errors) or None,
    )


def _part_rewards(verifiers: Mapping[str, Verifier], verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    """The rewards of all named parts; with several verifiers, under the verifier's name."""
    return {
        part if len(verifiers) == 1 else f"{name}/{part}": verdicts[name].parts.get(part, math.nan)
        for name, verifier in verifiers.items()
        for part in verifier.part_names
    }


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
