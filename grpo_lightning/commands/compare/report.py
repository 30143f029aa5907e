"""The contents of the report, in order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grpo_lightning.commands.compare.blocks import Block, Charts, Figure, Heading, Summary, Table, Text
from grpo_lightning.commands.compare.cells import NOT_MEASURED, count, duration, over_seeds, share
from grpo_lightning.commands.compare.cost import cost
from grpo_lightning.commands.compare.differences import difference_blocks, find_differences
from grpo_lightning.commands.compare.dynamics import AXES, PANELS, POINTS, all_bands
from grpo_lightning.commands.compare.figures import draw_accuracy, draw_dynamics
from grpo_lightning.commands.compare.interactive import chart_data
from grpo_lightning.commands.compare.measure import ACCURACY, Measure, measure_of
from grpo_lightning.commands.compare.methods import Method, results_SQ
from grpo_lightning.commands.compare.runs import TEST_COMMAND
from grpo_lightning.commands.compare.statistics import accuracy
from grpo_lightning.commands.compare.summary import summary
from grpo_lightning.errors import ConfigError
from grpo_lightning.intervals import Interval
from grpo_lightning.output import counted


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
    measure = measure_of(methods)
    differences = find_differences(methods, problems, options.resamples) if measure is ACCURACY else []
    return [
        Summary(summary(methods, problems, differences)),
        *_results(methods, measure, problems, options.out),
        *_dynamics(methods, options.out),
        *difference_blocks(differences, len(problems), options.resamples),
        *cost(methods, measure),
        *_record(methods, measure, options.command),
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


# -- accuracy or reward, memory, time ---------------------------------------------------------------------------------


def _results(methods: Sequence[Method], measure: Measure, problems: Sequence[str], out: Path) -> list[Block]:
    rows, intervals = [], []
    for method in methods:
        has_interval = measure is ACCURACY and bool(method.tested)
        interval = accuracy(results_SQ(method.tested, problems)) if has_interval else None
        intervals.append(interval)
        rows.append(
            [
                method.name,
                _seeds(method),
                *_tested_cells(method, measure, interval),
                over_seeds([run.last(measure.curve) for run in method.runs], measure.show, np.mean),
                over_seeds([run.peak_memory_gib for run in method.runs], lambda gib: f"{gib:.2f} GiB", np.max),
                over_seeds([run.last("total/wall_s") for run in method.runs], duration, np.mean),
                over_seeds([run.last("total/cpu_s") for run in method.runs], duration, np.mean),
                over_seeds([run.last("total/rollout_tokens") for run in method.runs], count, np.mean),
                over_seeds([run.last("total/train_tokens") for run in method.runs], count, np.mean),
            ]
        )
    header = [
        "method", "seeds", f"test {measure.name}", "95 % interval", "validation", "peak memory", "wall time",
        "CPU time", "tokens generated", "tokens trained",
    ]  # fmt: skip
    blocks: list[Block] = [Heading("Results"), Table(header, rows, _results_caption(methods, measure, len(problems)))]
    if any(intervals):
        draw_accuracy(methods, intervals, f"accuracy on {len(problems)} test problems", out)
        caption = "Test accuracy: mean (symbol), 95 % interval (bar), and every seed (strokes)."
        blocks.append(Figure("accuracy", "Test accuracy of the methods", caption))
    return blocks


def _results_caption(methods: Sequence[Method], measure: Measure, problems: int) -> str:
    parts = []
    if any(method.tested for method in methods):
        parts.append(
            f"Test {measure.name} is the mean over {problems} test problems, one completion each, and over the seeds."
            + (" Completions without a verdict have no reward and are omitted." if measure is not ACCURACY else "")
        )
    if measure is not ACCURACY:
        parts.append("Intervals are computed for accuracy only.")
    elif any(len(method.tested) == 1 for method in methods):
        parts.append("The interval of a single seed is Wilson's and does not generalise to other seeds.")
    if measure is ACCURACY and any(len(method.tested) > 1 for method in methods):
        parts.append(
            "The interval of several seeds generalises to other seeds and other problems: two-way random effects "
            "(seeds x problems), Student's t with Satterthwaite's degrees of freedom."
        )
    repeated = [method.name for method in methods if method.repeated_seeds]
    if repeated:
        parts.append(
            f"Several runs of {', '.join(repeated)} have the same seed: the intervals take them for different seeds, "
            "so they are too narrow."
        )
    untested = [method.name for method in methods if not method.tested]
    if untested:
        parts.append(f"Not tested: {', '.join(untested)} (run `{TEST_COMMAND}`).")
    errors = sum(run.test.errors for method in methods for run in method.tested if run.test is not None)
    if errors:
        parts.append(
            f"A verifier failed on {counted(errors, 'completion')}, which {'counts' if errors == 1 else 'count'} "
            "as not solved."
        )
    parts.append(
        "Validation is the last validation of the training run. Peak memory is the maximum over the seeds, all other "
        "columns are means. Time and tokens are those of the training run only, without its warm start."
    )
    return " ".join(parts)


def _seeds(method: Method) -> str:
    seeds, tested = len(set(method.seeds)), len({run.seed for run in method.tested})
    notes = [f"{tested} tested"] if 0 < tested < seeds else []
    notes += [f"{len(method.runs)} runs"] if seeds < len(method.runs) else []
    return f"{seeds}" + (f" ({', '.join(notes)})" if notes else "")


def _tested_cells(method: Method, measure: Measure, interval: Interval | None) -> list[str]:
    if interval is None:
        values = [measure.of_test(run.test) for run in method.runs if run.test is not None]
        return [over_seeds(values, measure.show, np.mean), ""]
    return [share(interval.mean), f"{100 * interval.low:.1f} to {share(interval.high)}"]


# -- dynamics ---------------------------------------------------------------------------------------------------------


def _dynamics(methods: Sequence[Method], out: Path) -> list[Block]:
    found = {axis: bands for axis in AXES if (bands := all_bands(methods, axis))}
    blocks: list[Block] = [Heading("Training dynamics")]
    if found:
        # Every curve has steps, so they are measured if anything is.
        steps = next(iter(found))
        draw_dynamics(methods, found[steps], steps.label, out)
        caption = _dynamics_caption(methods)
        figure = Figure(
            "curves", f"Training dynamics over {steps.label}",
            f"Over {steps.label}; `report.html` switches to tokens, time and cost. {caption}",
        )  # fmt: skip
        hint = "A dotted line is the final accuracy of a method without a curve on the axis. Drag to zoom, double-click"
        blocks.append(Charts(figure, f"{caption} {hint} to see all.", chart_data(methods, found)))
    blocks += [
        Text(f"Over {axis.label}: {NOT_MEASURED} (no run has `{axis.curve}`).") for axis in AXES if axis not in found
    ]
    missing = [panel.title for panel in PANELS if not any(panel in bands for bands in found.values())]
    if missing:
        blocks.append(Text(f"{NOT_MEASURED.capitalize()} by any run: {', '.join(missing)}."))
    return blocks


def _dynamics_caption(methods: Sequence[Method]) -> str:
    bands = (
        f" Several seeds: the mean, in a band from the lowest to the highest, interpolated on a common axis ({POINTS} "
        f"points) if their steps differ, over the range that all seeds cover."
        if any(len(method.runs) > 1 for method in methods)
        else ""
    )
    return (
        "Curves logged at every step are running means over 1/40 of the steps; validation and memory are as measured."
        f"{bands}"
    )


# -- runs and versions ------------------------------------------------------------------------------------------------


def _record(methods: Sequence[Method], measure: Measure, command: str) -> list[Block]:
    rows = []
    for method in methods:
        for run in method.runs:
            tested = over_seeds([None if run.test is None else measure.of_test(run.test)], measure.show, np.mean)
            checkpoint = Path(run.test.checkpoint).name if run.test is not None and run.is_trained else ""
            rows.append(
                [method.name, f"`{run.folder}`", str(run.environment.get("device", NOT_MEASURED)),
                 checkpoint, str(run.seed), f"{run.steps:,}", tested]
            )  # fmt: skip
    caption = "All runs, with the checkpoint that was tested."
    versions: dict[str, None] = {}
    for run in (run for method in methods for run in method.runs):
        packages = run.environment.get("versions")
        if packages:
            versions[", ".join(f"{name} {number}" for name, number in packages.items())] = None
    table = Table(["method", "run", "device", "checkpoint", "seed", "steps", measure.name], rows, caption, left=4)
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
