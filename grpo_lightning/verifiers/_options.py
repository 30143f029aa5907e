"""Checks of options that several verifiers have."""

from __future__ import annotations

import math

from grpo_lightning.errors import ConfigError


def require(holds: bool, option: str, wanted: str, given: object) -> None:
    """Refuse the value of an option unless a condition holds.

    Args:
        holds: the condition.
        option: the class and the option, such as ``MathVerifier.workers``.
        wanted: what it must be.
        given: its value.

    Raises:
        ConfigError: the condition does not hold.
    """
    if not holds:
        raise ConfigError(f"{option}: must be {wanted}, not {given!r}")


def require_max_chars(owner: str, max_chars: int) -> None:
    """Refuse a limit below 1 character."""
    require(max_chars >= 1, f"{owner}.max_chars", "at least 1", max_chars)


def require_workers(owner: str, workers: int | None) -> None:
    """Refuse a number of processes below 1."""
    require(workers is None or workers >= 1, f"{owner}.workers", "at least 1, or null for the default", workers)


def require_tolerances(owner: str, rel_tol: float, abs_tol: float) -> None:
    """Refuse tolerances that are negative, or that everything is within."""
    require(0 <= rel_tol < 1, f"{owner}.rel_tol", "at least 0 and below 1", rel_tol)
    require(0 <= abs_tol < math.inf, f"{owner}.abs_tol", "at least 0 and finite", abs_tol)
