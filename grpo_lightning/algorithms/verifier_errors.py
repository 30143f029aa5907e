"""Verifiers that break too often stop a run."""

from __future__ import annotations

from grpo_lightning.algorithms.ranks import RankedModule
from grpo_lightning.errors import RunError
from grpo_lightning.rollout.experience import Experience


class VerifierError(RunError):
    """A verifier broke on too many completions of one step."""


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
