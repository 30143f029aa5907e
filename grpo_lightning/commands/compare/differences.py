"""The differences in accuracy between methods, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from grpo_lightning.commands.compare.blocks import Block, Heading, Table
from grpo_lightning.commands.compare.cells import NOT_MEASURED, p_value, signed
from grpo_lightning.commands.compare.methods import Method, results_SQ
from grpo_lightning.commands.compare.runs import Run
from grpo_lightning.commands.compare.statistics import Array, holm, mcnemar, paired_bootstrap, two_way


def differences(methods: Sequence[Method], problems: Sequence[str], resamples: int) -> list[Block]:
    """Return the table of the differences between any two tested methods; nothing with fewer than two."""
    tested = [method for method in methods if method.tested]
    if len(tested) < 2:
        return []
    compared = []
    for first, second in combinations(tested, 2):
        pairs = paired_runs(first, second)
        first_SQ = results_SQ([pair[0] for pair in pairs], problems)
        second_SQ = results_SQ([pair[1] for pair in pairs], problems)
        over_problems = paired_bootstrap((second_SQ - first_SQ).mean(axis=0), resamples)
        compared.append((first, second, pairs, first_SQ, second_SQ, over_problems))
    adjusted = holm([bootstrap.p for *_, bootstrap in compared])
    rows = []
    for (first, second, _, first_SQ, second_SQ, bootstrap), p in zip(compared, adjusted, strict=True):
        interval = bootstrap.interval
        exact = [mcnemar(first_Q, second_Q) for first_Q, second_Q in zip(first_SQ, second_SQ, strict=True)]
        rows.append(
            [
                f"{second.name} vs {first.name}",
                signed(interval.mean),
                f"{signed(interval.low)} to {signed(interval.high)}",
                p_value(bootstrap.p),
                p_value(p),
                _two_way_cell(first_SQ, second_SQ),
                ", ".join(signed(float(difference)) for difference in (second_SQ - first_SQ).mean(axis=1)),
                ", ".join(f"{test.only_second}:{test.only_first} p {p_value(test.p)}" for test in exact),
            ]
        )
    header = [
        "difference", "points", "95 %, other problems", "p", "p, Holm", "95 %, other seeds and problems", "by seed",
        "McNemar by seed",
    ]  # fmt: skip
    caption = (
        f"Differences in accuracy, in percentage points, on the same {len(problems)} test problems. Runs are paired by "
        "seed and averaged for each problem; the first interval and p are a paired bootstrap over problems "
        f"({resamples:,} resamples), so they generalise to other problems for these runs. p, Holm is adjusted for the "
        "number of comparisons. The second interval treats seeds and problems as random (two-way random effects), so "
        "it generalises to other runs too; it needs two seeds. McNemar's test is exact; a:b counts the problems that "
        "only the first or only the second of a row's two methods solved."
    )
    unpaired = [f"{a.name} and {b.name}" for a, b, pairs, *_ in compared if any(x.seed != y.seed for x, y in pairs)]
    if unpaired:
        caption += f" No common seed, so paired in order: {'; '.join(unpaired)}."
    omitted = [text for a, b, pairs, *_ in compared if (text := _unpaired_runs(a, b, pairs))]
    if omitted:
        caption += f" Omitted, for lack of a run to pair with: {'; '.join(omitted)}."
    return [Heading("Differences"), Table(header, rows, caption)]


def paired_runs(first: Method, second: Method) -> list[tuple[Run, Run]]:
    """Pair tested runs by seed, or in order if the methods have no common seed."""
    unpaired = list(second.tested)
    pairs = []
    for run in first.tested:
        match = next((candidate for candidate in unpaired if candidate.seed == run.seed), None)
        if match is not None:
            unpaired.remove(match)
            pairs.append((run, match))
    return pairs or list(zip(first.tested, second.tested, strict=False))


def _unpaired_runs(first: Method, second: Method, pairs: Sequence[tuple[Run, Run]]) -> str:
    paired = {run.folder for pair in pairs for run in pair}
    runs = [(method, run) for method in (first, second) for run in method.tested if run.folder not in paired]
    names = ", ".join(f"{method.name} seed {run.seed}" for method, run in runs)
    return f"{names} ({second.name} vs {first.name})" if names else ""


def _two_way_cell(first_SQ: Array, second_SQ: Array) -> str:
    if min(first_SQ.shape) < 2:
        return NOT_MEASURED
    interval = two_way(second_SQ - first_SQ)
    return f"{signed(interval.low)} to {signed(interval.high)}"
