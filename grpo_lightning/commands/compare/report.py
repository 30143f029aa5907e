"""The contents of the report, in order."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from grpo_lightning.commands.compare.blocks import Block, Figure, Heading, Table, Text
from grpo_lightning.commands.compare.dynamics import AXES, PANELS, POINTS
from grpo_lightning.commands.compare.figures import draw_accuracy, draw_dynamics
from grpo_lightning.commands.compare.methods import Method
from grpo_lightning.commands.compare.runs import TEST_COMMAND, Run
from grpo_lightning.commands.compare.statistics import (
    Array,
    accuracy,
    holm,
    mcnemar,
    paired_bootstrap,
    two_way,
)
from grpo_lightning.errors import ConfigError
from grpo_lightning.intervals import Interval

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Options:
    """Options of a report.

    Args:
        out: the folder to which it is written.
        resamples: number of bootstrap resamples.
        command: the command that writes it.
    """

    out: Path
    resamples: int
    command: str


def report_blocks(methods: Sequence[Method], options: Options) -> list[Block]:
    """Draw the figures and return the blocks of the report.

    Raises:
        ConfigError: runs were tested on different problems.
    """
    problems = shared_problems(methods)
    return [
        *_results(methods, problems, options.out),
        *_differences(methods, problems, options.resamples),
        *_dynamics(methods, options.out),
        *_record(methods, options.command),
    ]


def shared_problems(methods: Sequence[Method]) -> list[str]:
    """Return the problems on which all tested runs were tested.

    Raises:
        ConfigError: runs were tested on different problems.
    """
    tested = [run for method in methods for run in method.tested]
    for run in tested[1:]:
        problems, first = set(run.test.correct), set(tested[0].test.correct)  # type: ignore[union-attr]
        if problems != first:
            raise ConfigError(
                f"RUN_DIR: {tested[0].folder} was tested on {len(first)} problems and {run.folder} on {len(problems)}, "
                f"of which {len(problems & first)} are the same: test both with the same data.task options"
            )
    return list(tested[0].test.correct) if tested and tested[0].test else []


def results_SQ(runs: Sequence[Run], problems: Sequence[str]) -> Array:
    """Return the results of the tested runs: 1 if run ``S`` solved problem ``Q``, else 0."""
    return np.array([[run.test.correct[key] for key in problems] for run in runs if run.test is not None])


# -- accuracy, memory, time -------------------------------------------------------------------------------------------


def _results(methods: Sequence[Method], problems: Sequence[str], out: Path) -> list[Block]:
    rows, intervals = [], []
    for method in methods:
        interval = accuracy(results_SQ(method.tested, problems)) if method.tested else None
        intervals.append(interval)
        rows.append(
            [
                method.name,
                _seeds(method),
                *_accuracy_cells(method, interval),
                _over_seeds([run.last("val/accuracy") for run in method.runs], _share, np.mean),
                _over_seeds([run.peak_memory_gib for run in method.runs], lambda gib: f"{gib:.2f} GiB", np.max),
                _over_seeds([run.last("total/wall_s") for run in method.runs], _time, np.mean),
                _over_seeds([run.last("total/cpu_s") for run in method.runs], _time, np.mean),
                _over_seeds([run.last("total/rollout_tokens") for run in method.runs], _count, np.mean),
                _over_seeds([run.last("total/train_tokens") for run in method.runs], _count, np.mean),
            ]
        )
    header = [
        "method", "seeds", "test accuracy", "95 % interval", "validation", "peak memory", "wall time", "CPU time",
        "tokens generated", "tokens trained",
    ]  # fmt: skip
    blocks: list[Block] = [Heading("Results"), Table(header, rows, _results_caption(methods, len(problems)))]
    if any(intervals):
        draw_accuracy(methods, intervals, f"accuracy on {len(problems)} test problems", out)
        caption = "Test accuracy: mean (symbol), 95 % interval (bar), and every seed (strokes)."
        blocks.append(Figure("accuracy", "Test accuracy of the methods", caption))
    return blocks


def _results_caption(methods: Sequence[Method], problems: int) -> str:
    parts = []
    if any(method.tested for method in methods):
        parts.append(
            f"Test accuracy is the mean over {problems} test problems, one completion each, and over the seeds."
        )
    if any(len(method.tested) == 1 for method in methods):
        parts.append("The interval of a single seed is Wilson's and does not generalise to other seeds.")
    if any(len(method.tested) > 1 for method in methods):
        parts.append(
            "The interval of several seeds generalises to other seeds and other problems: two-way random effects "
            "(seeds x problems), Student's t with Satterthwaite's degrees of freedom."
        )
    untested = [method.name for method in methods if not method.tested]
    if untested:
        parts.append(f"Not tested: {', '.join(untested)} (run `{TEST_COMMAND}`).")
    errors = sum(run.test.errors for method in methods for run in method.tested if run.test is not None)
    if errors:
        parts.append(f"A verifier failed on {errors} completions; they count as not solved.")
    parts.append(
        "Validation is the last validation of the training run. Peak memory is the maximum over the seeds, all other "
        "columns are means. Time and tokens are those of the training run only, without its warm start."
    )
    return " ".join(parts)


def _seeds(method: Method) -> str:
    missing = len(method.runs) - len(method.tested)
    return f"{len(method.runs)}" + (f" ({len(method.tested)} tested)" if missing and method.tested else "")


def _accuracy_cells(method: Method, interval: Interval | None) -> list[str]:
    if interval is None:
        return [NOT_MEASURED, ""]
    return [_share(interval.mean), f"{100 * interval.low:.1f} to {_share(interval.high)}"]


# -- differences ------------------------------------------------------------------------------------------------------


def _differences(methods: Sequence[Method], problems: Sequence[str], resamples: int) -> list[Block]:
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
                _signed(interval.mean),
                f"{_signed(interval.low)} to {_signed(interval.high)}",
                _p(bootstrap.p),
                _p(p),
                _two_way_cell(first_SQ, second_SQ),
                ", ".join(_signed(float(difference)) for difference in (second_SQ - first_SQ).mean(axis=1)),
                ", ".join(f"{test.only_second}:{test.only_first} p {_p(test.p)}" for test in exact),
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
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


# -- dynamics ---------------------------------------------------------------------------------------------------------


def _dynamics(methods: Sequence[Method], out: Path) -> list[Block]:
    blocks: list[Block] = [Heading("Training dynamics")]
    drawn = set()
    for axis in AXES:
        panels = draw_dynamics(methods, axis, out)
        if not panels:
            blocks.append(Text(f"Over {axis.label}: {NOT_MEASURED} (no run has `{axis.curve}`)."))
            continue
        drawn |= set(panels)
        blocks.append(Figure(axis.name, f"Training dynamics over {axis.label}", _dynamics_caption(methods, axis.label)))
    missing = [panel.title for panel in PANELS if panel not in drawn]
    if missing:
        blocks.append(Text(f"{NOT_MEASURED.capitalize()} by any run: {', '.join(missing)}."))
    return blocks


def _dynamics_caption(methods: Sequence[Method], axis: str) -> str:
    bands = (
        f" Several seeds: the mean, in a band from the lowest to the highest, interpolated on a common axis ({POINTS} "
        f"points) if their steps differ, over the range that all seeds cover."
        if any(len(method.runs) > 1 for method in methods)
        else ""
    )
    return (
        f"Over {axis}. Curves logged at every step are running means over 1/40 of the steps; validation and memory are "
        f"as measured.{bands} A dotted line is the final value of a method without a curve on this axis."
    )


# -- runs and versions ------------------------------------------------------------------------------------------------


def _record(methods: Sequence[Method], command: str) -> list[Block]:
    rows = []
    for method in methods:
        for run in method.runs:
            steps = max(curve.steps[-1] for curve in run.curves.values())
            tested = NOT_MEASURED if run.test is None else _share(float(np.mean(list(run.test.correct.values()))))
            checkpoint = "" if run.test is None else Path(run.test.checkpoint).name
            rows.append(
                [method.name, f"`{run.folder}`", str(run.environment.get("device", NOT_MEASURED)),
                 checkpoint, str(run.seed), f"{steps:,.0f}", tested]
            )  # fmt: skip
    caption = "All runs, with the checkpoint that was tested."
    versions: dict[str, None] = {}
    for run in (run for method in methods for run in method.runs):
        packages = run.environment.get("versions")
        if packages:
            versions[", ".join(f"{name} {number}" for name, number in packages.items())] = None
    table = Table(["method", "run", "device", "checkpoint", "seed", "steps", "accuracy"], rows, caption, left=4)
    commands = [
        [method.name, f"`{shlex.join(run.environment['command'])}`"]
        for method in methods
        for run in method.runs[:1]
        if run.environment.get("command")
    ]
    seeds = sorted({str(run.seed) for method in methods for run in method.runs})
    return [
        Heading("Runs"),
        table,
        *([Table(["method", "command of its first run"], commands, "", left=2)] if commands else []),
        Text(f"Seeds: {', '.join(seeds)}."),
        Text(f"Versions: {'; '.join(versions) or NOT_MEASURED}."),
        Text(f"This report: `{command}`"),
    ]


# -- cells ------------------------------------------------------------------------------------------------------------


def _over_seeds(values: Sequence[float | None], show: Callable[[float], str], combine: Any) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOT_MEASURED
    return show(float(combine(known))) + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: float) -> str:
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.0f} k" if number < 1e6 else f"{number / 1e6:.2f} M"
