"""Attempts whose verifier broke: tolerated up to a share of a step, then the run stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo_lightning.errors import RunError
from grpo_lightning.types import Attempt


class VerifierError(RunError):
    """A verifier broke on too many completions of one step."""


def check_verifier_errors(
    attempts: Sequence[Attempt], max_error_rate: float, all_ranks_sum: Callable[..., list[float]]
) -> None:
    """Check how many attempts of a step have no verdict because a verifier broke. Every rank must call it.

    Args:
        attempts: the attempts of this rank.
        max_error_rate: the share that is tolerated, ``model.max_error_rate``.
        all_ranks_sum: sums numbers over all ranks.

    Raises:
        VerifierError: they are more, over all ranks.
    """
    errors = [attempt.verdict.error for attempt in attempts if attempt.verdict.error is not None]
    broken, all_attempts = all_ranks_sum(len(errors), len(attempts))
    if broken > max_error_rate * all_attempts:
        raise VerifierError(
            f"a verifier broke on {broken:.0f} of {all_attempts:.0f} completions, more than model.max_error_rate="
            f"{max_error_rate} allows; the last error on this rank: {errors[-1] if errors else 'none'}"
        )
