"""The sentence at the top of a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_lightning.commands.compare.cells import NOT_MEASURED, share, signed
from grpo_lightning.commands.compare.differences import Difference
from grpo_lightning.commands.compare.measure import ACCURACY, REWARD
from grpo_lightning.commands.compare.methods import Method, results_SQ
from grpo_lightning.commands.compare.statistics import accuracy


def summary(methods: Sequence[Method], problems: Sequence[str], differences: Sequence[Difference]) -> str:
    """Say which method is the most accurate, and whether it differs from the second by more than noise.

    Where rewards do not tell right from wrong, say so, and give the mean rewards.
    """
    if graded := [method.name for method in methods if method.is_graded]:
        last = _last_validations(methods, REWARD.curve)
        rewards = "; ".join(f"{name} {REWARD.show(value)}" for name, value in last.items())
        return (
            f"The rewards of {' and '.join(graded)} do not tell right from wrong, so the tables show mean rewards "
            f"instead of accuracy. In the last validation: {rewards or NOT_MEASURED}."
        )
    tested = {method.name: accuracy(results_SQ(method.tested, problems)) for method in methods if method.tested}
    if not tested:
        return _by_validation(methods)
    ranked = sorted(tested, key=lambda name: -tested[name].mean)
    best, interval = ranked[0], tested[ranked[0]]
    solved = (
        f"{share(interval.mean)} of {len(problems)} test problems "
        f"(95 % interval {100 * interval.low:.1f} to {share(interval.high)})"
    )
    if len(ranked) == 1:
        return f"{best} solves {solved}."
    (pair,) = (pair for pair in differences if {pair.first.name, pair.second.name} == set(ranked[:2]))
    sign = 1 if pair.second.name == best else -1
    between = pair.over_all or pair.over_problems.interval
    difference = sign * between.mean
    low, high = sorted((sign * between.low, sign * between.high))
    noise = "more than the noise" if low > 0 or high < 0 else "within the noise"
    others = "over seeds and problems" if pair.over_all else "over problems"
    between_text = f"95 % interval {signed(low)} to {signed(high)}, {others}"
    return (
        f"{best} is the most accurate of {len(ranked)} methods, with {solved}: {signed(difference)} points "
        f"over the second, {ranked[1]}, {noise} of these runs ({between_text})."
    )


def _by_validation(methods: Sequence[Method]) -> str:
    last = _last_validations(methods, ACCURACY.curve)
    if not last:
        return "No run was tested or validated, so this report cannot say which method is the most accurate."
    best = max(last, key=lambda name: last[name])
    others = f", the highest of {len(last)} methods" if len(last) > 1 else ""
    return f"{best} ends with a validation accuracy of {share(last[best])}{others}; no run was tested."


def _last_validations(methods: Sequence[Method], curve: str) -> dict[str, float]:
    """The last value of a curve by method, as a mean over its runs; without methods that do not have it."""
    return {
        method.name: float(np.mean(known))
        for method in methods
        if (known := [value for run in method.runs if (value := run.last(curve)) is not None])
    }
