"""What a step's rollouts say: rewards, lengths, times, and what came of further attempts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from grpo_lightning.algorithms.metrics import RankedModule, StepMetrics
from grpo_lightning.errors import RunError
from grpo_lightning.functional import masked_std
from grpo_lightning.rollout.experience import Ahead, Experience
from grpo_lightning.rollout.resampling import is_silent

ROLLOUT_MEANS = (
    "reward/mean", "reward/std", "reward/correct", "reward/format_valid", "reward/errors",
    "reward/correct_after_refinement", "refinement/correct", "refinement/attempts",
    "completion/length_mean", "completion/truncated", "episode/turns",
    "policy/truncation_gap",
    "time/rollout_s", "time/verify_s",
    "throughput/rollout_tokens_per_s",
    "policy/rollout_age", "throughput/learner_waits", "throughput/engine_waits",
)  # fmt: skip
ROLLOUT_MAXIMA = ("completion/length_max",)


class VerifierError(RunError):
    """A verifier broke on too many completions of one step."""


def add_rollouts(experience: Experience, metrics: StepMetrics, reward_names: Sequence[str]) -> None:
    """Add a step's attempts to its metrics: the first ones, and what came of those that follow them.

    Args:
        experience: the rows of the step.
        metrics: what is logged is added here.
        reward_names: rewards with curves ``reward/<name>`` of their own.
    """
    outcomes = experience.outcomes
    count = len(outcomes)
    verdicts = [outcome.verdict for outcome in outcomes]
    errors = sum(verdict.error is not None for verdict in verdicts)
    reward_BG = torch.tensor([outcome.reward for outcome in outcomes]).view(-1, experience.recipe.group_size)
    metrics.add("reward/errors", errors, count)
    metrics.add_masked("reward/mean", reward_BG, ~reward_BG.isnan())
    metrics.add("reward/correct", sum(verdict.correct for verdict in verdicts), count - errors)
    metrics.add("reward/format_valid", sum(verdict.format_valid for verdict in verdicts), count - errors)
    metrics.add("reward/std", masked_std(reward_BG, ~reward_BG.isnan(), dim=1).sum(), len(reward_BG))
    for name in reward_names:
        rewards = [outcome.rewards_by_verifier[name] for outcome in outcomes]
        known = [reward for reward in rewards if math.isfinite(reward)]
        metrics.add(f"reward/{name}", sum(known), len(known))
    tokens = [outcome.tokens for outcome in outcomes]
    metrics.add("completion/length_mean", sum(tokens), count)
    metrics.see("completion/length_max", float(max(tokens)))
    metrics.add("completion/truncated", sum(outcome.is_truncated for outcome in outcomes), count)
    for phase, seconds in experience.seconds.items():
        metrics.add(f"time/{phase}_s", seconds, 1)
    sampled = sum(len(attempt.completion.token_ids) for attempt in [*experience.attempts, *experience.replaced])
    metrics.add("throughput/rollout_tokens_per_s", sampled, experience.seconds["rollout"])
    if experience.ahead is not None:
        add_ahead(experience.ahead, metrics)
    if experience.recipe.environment is not None:
        metrics.add("episode/turns", len(experience), count)
    if experience.recipe.refinement is not None:
        add_refinement(experience, metrics)
    if experience.recipe.resample is not None:
        add_resampling(experience, metrics)
    if experience.recipe.sampling.truncates:
        add_truncation(experience, metrics)


def add_ahead(ahead: Ahead, metrics: StepMetrics) -> None:
    """How old the rollouts are, and who waited for whom."""
    metrics.add("policy/rollout_age", ahead.age, 1)
    for name, share in (("learner_waits", ahead.learner_waits), ("engine_waits", ahead.engine_waits)):
        if share is not None:
            metrics.add(f"throughput/{name}", share, 1)


def add_refinement(experience: Experience, metrics: StepMetrics) -> None:
    """First attempts apart from those that follow them."""
    later = experience.attempts[experience.first :]
    metrics.add("refinement/attempts", len(later), len(experience.groups))
    # Nothing follows a correct attempt, so the last of each conversation says whether it was solved.
    last = experience.last_attempts
    for name, attempts in (("refinement/correct", later), ("reward/correct_after_refinement", last)):
        judged = [attempt.verdict.correct for attempt in attempts if attempt.verdict.error is None]
        metrics.add(name, sum(judged), len(judged))


def add_resampling(experience: Experience, metrics: StepMetrics) -> None:
    """What replacing groups without a signal took, and what came of it."""
    groups = experience.groups
    useful = [group for group in groups if not is_silent(group)]
    replaced = len(experience.replaced) // experience.recipe.group_size
    used, sampled = (
        sum(len(attempt.completion.token_ids) for attempt in attempts)
        for attempts in ([attempt for group in useful for attempt in group], experience.sampled)
    )
    metrics.add("resample/replaced", replaced, replaced + len(groups))
    metrics.add("resample/silent", len(groups) - len(useful), len(groups))
    metrics.add("resample/used_tokens", used, sampled)


def add_truncation(experience: Experience, metrics: StepMetrics) -> None:
    """How far top-k, top-p and min-p moved the distribution drawn from, per token on average (nats)."""
    for attempt in experience.attempts if experience.recipe.environment is not None else experience.sampled:
        drawn, whole = attempt.completion.sampling_logprobs, attempt.completion.logprobs
        metrics.add("policy/truncation_gap", sum(drawn) - sum(whole), len(drawn))


def check_verifier_errors(experience: Experience, ranks: RankedModule, max_error_rate: float) -> None:
    """Stop a run whose verifiers break. Every rank must call it.

    Raises:
        VerifierError: over all ranks, more attempts than ``max_error_rate`` allows have no verdict.
    """
    judged = [*experience.attempts, *experience.replaced]
    errors = [attempt.verdict.error for attempt in judged if attempt.verdict.error is not None]
    broken, attempts = ranks.all_ranks_sum(len(errors), len(judged))
    if broken > max_error_rate * attempts:
        breaks = "a verifier" if experience.recipe.environment is None else "the environment or a verifier"
        raise VerifierError(
            f"{breaks} broke on {broken:.0f} of {attempts:.0f} completions, more than model.max_error_rate="
            f"{max_error_rate} allows; the last error on this rank: {errors[-1] if errors else 'none'}"
        )
