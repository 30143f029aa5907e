"""The differences in accuracy between methods, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from grpo_lightning.commands.compare.blocks import Block, Heading, Table
from grpo_lightning.commands.compare.cells import NOT_MEASURED, p_value, signed
from grpo_lightning.commands.compare.methods import Method, results_SQ
from grpo_lightning.commands.compare.runs import Run
from grpo_lightning.commands.compare.statistics import Array, Bootstrap, holm, mcnemar, paired_bootstrap, two_way
from grpo_lightning.intervals import Interval


@dataclass(frozen=True)
class Difference:
    """The difference in accuracy of two methods, second minus first.

    Args:
        first: one method.
        second: the other one.
        pairs: their runs, paired.
        first_SQ: results of the first one's runs.
        second_SQ: results of the second one's runs.
        over_problems: a paired bootstrap over problems.
        p: its p, adjusted by Holm for all differences of a report.
    """

    first: Method
    second: Method
    pairs: list[tuple[Run, Run]]
    first_SQ: Array
    second_SQ: Array
    over_problems: Bootstrap
    p: float

    @property
    def over_all(self) -> Interval | None:
        """The interval that generalises to other seeds and problems; ``None`` with a single pair, or problem."""
        return None if min(self.first_SQ.shape) < 2 else two_way(self.second_SQ - self.first_SQ)


def find_differences(methods: Sequence[Method], problems: Sequence[str], resamples: int) -> list[Difference]:
    """Compare any two tested methods."""
    tested = [method for method in methods if method.tested]
    compared: list[tuple[Method, Method, list[tuple[Run, Run]], Array, Array, Bootstrap]] = []
    for first, second in combinations(tested, 2):
        pairs = paired_runs(first, second)
        first_SQ = results_SQ([pair[0] for pair in pairs], problems)
        second_SQ = results_SQ([pair[1] for pair in pairs], problems)
        over_problems = paired_bootstrap((second_SQ - first_SQ).mean(axis=0), resamples)
        compared.append((first, second, pairs, first_SQ, second_SQ, over_problems))
    adjusted = holm([bootstrap.p for *_, bootstrap in compared])
    return [Difference(*parts, p) for parts, p in zip(compared, adjusted, strict=True)]


def difference_blocks(found: Sequence[Difference], problems: int, resamples: int) -> list[Block]:
    """Return the table of the differences; nothing without any."""
    if not found:
        return []
    rows = []
    for pair in found:
        interval, first_SQ, second_SQ = pair.over_problems.interval, pair.first_SQ, pair.second_SQ
        over_all = "" if pair.over_all is None else f"{signed(pair.over_all.low)} to {signed(pair.over_all.high)}"
        exact = [mcnemar(first_Q, second_Q) for first_Q, second_Q in zip(first_SQ, second_SQ, strict=True)]
        rows.append(
            [
                f"{pair.second.name} vs {pair.first.name}",
                signed(interval.mean),
                f"{signed(interval.low)} to {signed(interval.high)}",
                p_value(pair.over_problems.p),
                p_value(pair.p),
                over_all or NOT_MEASURED,
                ", ".join(signed(float(difference)) for difference in (second_SQ - first_SQ).mean(axis=1)),
                ", ".join(f"{test.only_second}:{test.only_first} p {p_value(test.p)}" for test in exact),
            ]
        )
    header = [
        "difference", "points", "95 %, other problems", "p", "p, Holm", "95 %, other seeds and problems", "by seed",
        "McNemar by seed",
    ]  # fmt: skip
    caption = (
        f"Differences in accuracy, in percentage points, on the same {problems} test problems. Runs are paired by "
        "seed and averaged for each problem; the first interval and p are a paired bootstrap over problems "
        f"({resamples:,} resamples), so they generalise to other problems for these runs. p, Holm is adjusted for the "
        "number of comparisons. The second interval treats seeds and problems as random (two-way random effects), so "
        "it generalises to other runs too; it needs two seeds. McNemar's test is exact; a:b counts the problems that "
        "only the first or only the second of a row's two methods solved."
    )
    unpaired = [
        f"{pair.first.name} and {pair.second.name}" for pair in found if any(x.seed != y.seed for x, y in pair.pairs)
    ]
    if unpaired:
        caption += f" No common seed, so paired in order: {'; '.join(unpaired)}."
    omitted = [text for pair in found if (text := _unpaired_runs(pair.first, pair.second, pair.pairs))]
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
