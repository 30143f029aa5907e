"""The growth of time and memory with group size, prompts, lengths and vocabulary, with fitted exponents.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axis completion --repeats 5

One quantity is doubled while the others are fixed. Every point is a separate process; its first step warms up, and the
second is measured: process time on the CPU, wall time on CUDA. Memory is the peak above the loaded model, in one more
process per point.

The exponent is the slope of a least-squares line through the logarithms, with its standard error: 1 is linear, 0 flat.
Fixed costs dominate small sizes and lower the exponent, so the slope between the two largest sizes is shown as well.
Attention makes time grow slightly faster than linearly in the lengths eventually; nothing else may. All completions
reach the token limit, and the token budget of a micro-batch is fixed, so the update's memory must be flat in prompts
and group size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from meters import MALLOC, machine
from our_side import OurSide
from shapes import Shape, build

DIMS = {
    "vocab_size": 512, "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
BASE = Shape("scaling", "", "llama", DIMS, prompts=4, group_size=8, prompt_tokens=(64, 64), cap=64, mean=None)
BUDGET = 320  # the tokens of the smallest group and its prompt, so that the micro-batches of every point are full

AXES: dict[str, tuple[int, ...]] = {
    "group": (4, 8, 16, 32, 64),
    "prompts": (2, 4, 8, 16, 32),
    "completion": (32, 64, 128, 256, 512),
    "prompt": (64, 128, 256, 512, 1024),
    "vocabulary": (4096, 8192, 16_384, 32_768, 65_536),
}
FLAT = {("group", "update MiB"), ("prompts", "update MiB")}
"""Quantities that must not grow at a fixed token budget."""


def shape_at(axis: str, value: int) -> Shape:
    """Return the base shape with one quantity replaced."""
    if axis == "group":
        return replace(BASE, group_size=value)
    if axis == "prompts":
        return replace(BASE, prompts=value)
    if axis == "completion":
        return replace(BASE, cap=value)
    if axis == "prompt":
        return replace(BASE, prompt_tokens=(value, value))
    return replace(BASE, dims=DIMS | {"vocab_size": value})


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", action="append", choices=AXES, help="may be repeated (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="processes per point")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="only the two smallest sizes, once")
    parser.add_argument("--out", type=Path, help="file to write the tables to, besides stdout")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure_point(axis: str, value: int, device: torch.device, memory: bool) -> dict[str, float]:
    """Measure the seconds or MiB of rollout and update in this process."""
    shape = shape_at(axis, value)
    with tempfile.TemporaryDirectory() as folder:
        model = build(shape, Path(folder) / "model")
        side = OurSide(shape, model, device, memory, max_tokens_per_microbatch=BUDGET)
        side.step(1)
        step = side.step(2)
    if memory:
        return {"rollout MiB": step.peaks["rollout"], "update MiB": step.peaks["update"]}
    return {"rollout s": step.seconds["rollout"], "update s": step.seconds["update"]}


@dataclass(frozen=True)
class Fit:
    """``cost ~ size ** exponent``.

    Args:
        exponent: slope of ``log cost`` over ``log size``, by least squares.
        error: standard error of the exponent; 0 if there are only two points.
        last: slope between the medians of the two largest sizes.
    """

    exponent: float
    error: float
    last: float


def fit(sizes: Sequence[float], costs: Sequence[Sequence[float]]) -> Fit:
    """Fit an exponent to several costs per size."""
    points = [
        (math.log(size), math.log(cost)) for size, row in zip(sizes, costs, strict=True) for cost in row if cost > 0
    ]
    x_mean = statistics.fmean(x for x, _ in points)
    y_mean = statistics.fmean(y for _, y in points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread
    residual = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in points)
    error = math.sqrt(residual / (len(points) - 2) / spread) if len(points) > 2 else 0.0
    medians = [statistics.median(row) for row in costs]
    last = math.log(medians[-1] / medians[-2]) / math.log(sizes[-1] / sizes[-2])
    return Fit(slope, error, last)


def verdict(axis: str, quantity: str, line: Fit) -> str:
    """Compare a fit with its bound; up to 0.1 above the bound counts as measurement noise."""
    bound, name = (0.0, "flat") if (axis, quantity) in FLAT else (1.0, "at most linear")
    steepest = max(line.exponent, line.last)
    return name if steepest <= bound + 0.1 + 2 * line.error else f"**not {name}**"


def rows(axis: str, sizes: Sequence[int], costs_by_quantity: dict[str, list[list[float]]]) -> list[str]:
    """Return a row of the table per quantity whose costs are all above zero."""
    lines = []
    for quantity, costs in costs_by_quantity.items():
        if min(map(min, costs)) <= 0:
            continue
        line = fit(sizes, costs)
        medians = ", ".join(f"{statistics.median(row):.3g}" for row in costs)
        lines.append(
            f"| {axis} | {quantity} | {', '.join(map(str, sizes))} | {medians} | {line.exponent:.2f} ± "
            f"{line.error:.2f} | {line.last:.2f} | {verdict(axis, quantity, line)} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.point:
        job = json.loads(args.point)
        print(json.dumps(measure_point(device=device, **job)))
        return
    base = {key: value for key, value in asdict(BASE).items() if key in ("prompts", "group_size", "cap", "dims")}
    lines = [f"`{shlex.join(['python', *sys.argv])}`", "", machine(device), ""]
    lines += [f"Base: {base}, prompts of {BASE.prompt_tokens[0]} tokens; {BUDGET} tokens per micro-batch.", ""]
    lines += ["| axis | quantity | sizes | medians | exponent | last doubling | |", "|---|---|---|---|---|---|---|"]
    for axis in args.axis or AXES:
        sizes = AXES[axis][:2] if args.smoke else AXES[axis]
        costs_by_quantity: dict[str, list[list[float]]] = {}
        for value in sizes:
            runs = [_in_process(axis, value, args, memory=False) for _ in range(1 if args.smoke else args.repeats)]
            for measured in (runs, [_in_process(axis, value, args, memory=True)]):
                for quantity in measured[0]:
                    costs_by_quantity.setdefault(quantity, []).append([run[quantity] for run in measured])
            print(f"{axis} {value}: {runs[-1]}", file=sys.stderr, flush=True)
        lines += rows(axis, sizes, costs_by_quantity)
    table = "\n".join(lines)
    print(table)
    if args.out:
        args.out.write_text(table + "\n")


def _in_process(axis: str, value: int, args: argparse.Namespace, memory: bool) -> dict[str, float]:
    point = json.dumps({"axis": axis, "value": value, "memory": memory})
    command = [sys.executable, __file__, "--threads", str(args.threads), "--device", args.device, "--point", point]
    environment = os.environ | MALLOC if memory else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{axis} = {value} could not be measured:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
