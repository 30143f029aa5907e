"""Compares expressions in the symbolic worker, whose calls are limited."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal, cast

from grpo_lightning.verifiers.limited import LimitedWorker, OutOf

Outcome = Literal["equal", "different", "unparseable", "unparseable gold", "too complicated"]

_COMPARE = "grpo_lightning.verifiers.math.symbolic_compare"


@cache
def symbolic_worker(processes: int) -> LimitedWorker:
    """The worker that all verifiers with this number of processes share."""
    return LimitedWorker(setup=f"{_COMPARE}:load", call=f"{_COMPARE}:outcome", processes=processes)


@lru_cache(maxsize=16_384)
def compare(gold: str, answer: str, cpu_s: float, processes: int) -> Outcome:
    """Whether two LaTeX expressions are equal. Waits for the worker's start, if need be.

    Args:
        gold: the gold answer, gated.
        answer: the answer, gated.
        cpu_s: CPU time of the comparison.
        processes: comparisons that run at the same time, of all threads that give the same number.

    Raises:
        RuntimeError: the worker cannot start, or broke.
    """
    outcome = symbolic_worker(processes).call([gold, answer], cpu_s)
    if not isinstance(outcome, OutOf):
        return cast(Outcome, outcome)
    if gold != answer and compare(gold, gold, cpu_s, processes) == "too complicated":
        return "unparseable gold"
    return "too complicated"
