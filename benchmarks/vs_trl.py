"""This library and TRL's GRPOTrainer side by side: time, tokens per second, memory, and distance from the floor.

    pip install -e .[bench]
    python benchmarks/vs_trl.py --all
    python benchmarks/vs_trl.py --config tiny --config small --repeats 5
    python benchmarks/vs_trl.py --config smollm2 --model FOLDER --gsm8k FOLDER --repeats 5

Both run the same model (random weights; ``smollm2`` has trained ones and questions of GSM8K), prompts, rewards,
completion lengths, number of completions, mu, beta, precision and threads, alternating in one process: ours, TRL, ours,
TRL, ... The first turn of each is not counted. Time is process time on the CPU and wall time on CUDA. ``update`` is
everything in a step except rollout and scoring, so it includes old log-probs, optimizer and bookkeeping. TRL runs
without gradient checkpointing, with the fastest of a few micro-batch sizes. On the CPU its head scores every position
of a row, including prompt and padding; on a GPU only the completions. The second column of TRL is the CPU with the
GPU's behaviour; its head is a plain tile of 4096 x 32,768 in both (a Triton kernel on a GPU). Memory is the peak of the
update above the loaded model, each side in a separate process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Read when torch is imported: on shared cores, threads that spin while waiting cost more than they save.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from floors import measure, rollout_floor, update_floor
from meters import MALLOC, machine, spread
from our_side import OurSide, Step
from shapes import SHAPES, Shape, build, smoke, with_questions


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", choices=SHAPES, help="may be repeated (default: tiny)")
    parser.add_argument("--all", action="store_true", help="every configuration with random weights for the device")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="of smollm2: hub name or folder")
    parser.add_argument("--gsm8k", default="openai/gsm8k", help="data of smollm2: hub name or folder")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, per side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="small models and lengths that take seconds")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--out", type=Path, help="file to write the table to, besides stdout")
    parser.add_argument("--memory-of", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# -- memory, in a separate process ------------------------------------------------------------------------------------


def peak_of_update(name: str, shape: Shape, folder: str, device: torch.device, lengths: list[int], rows: int) -> float:
    """Measure the peak of the second step, when the optimizer's state exists, in MiB above the loaded model."""
    if name == "ours":
        ours = OurSide(shape, folder, device, memory=True)
        ours.step(1)
        peaks = ours.step(1).peaks
        return max(peaks["reference"], peaks["update"])
    from trl_side import TRLSide

    steps: list[Step] = []
    side = TRLSide(shape, folder, device, rows, steps=2, memory=True)
    side.run(lambda _: lengths, lambda _, step: steps.append(step))
    return steps[-1].peaks["update"]


def _memory(side: str, name: str, args: argparse.Namespace, folder: str, lengths: list[int], rows: int) -> float:
    command = [sys.executable, __file__, "--config", name, "--threads", str(args.threads), "--device", args.device]
    job = json.dumps({"folder": folder, "lengths": lengths, "rows": rows})
    command += ["--gsm8k", args.gsm8k, "--memory-of", side, "--job", job, *(["--smoke"] if args.smoke else [])]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory of {side} could not be measured:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


# -- one configuration ------------------------------------------------------------------------------------------------


def compare(shape: Shape, args: argparse.Namespace, device: torch.device) -> list[str]:
    """Measure one configuration, and return its rows of the table."""
    from trl_side import TRLSide, head_on_completions

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model if shape.pretrained else str(build(shape, Path(temporary) / "model"))
        ours = OurSide(shape, folder, device)
        lengths = ours.step(1).lengths
        rows = _fastest_microbatch(shape, folder, device, lengths)
        mine: list[Step] = []
        theirs: list[Step] = []
        compact: list[float] = []

        def our_turn(turn: int) -> list[int]:
            mine.append(ours.step(1 + turn))
            return mine[-1].lengths

        def their_turn(turn: int, step: Step) -> None:
            assert step.lengths == mine[-1].lengths, "the two sides generated different lengths"
            theirs.append(step)
            if device.type == "cpu":
                without_grad = (shape.updates > 1) + (shape.beta > 0)
                with head_on_completions():
                    compact.append(shape.updates * trl.passes() + without_grad * trl.passes(backward=False))
            note(f"{shape.name}: turn {turn} ours {mine[-1].seconds['step']:.2f} s, TRL {step.seconds['step']:.2f} s")

        trl = TRLSide(shape, folder, device, rows, steps=args.repeats + 1)
        trl.run(our_turn, their_turn)
        mine, theirs, compact = mine[1:], theirs[1:], compact[1:]
        if compact:
            for step, passes in zip(theirs, compact, strict=True):
                saved = step.seconds["passes"] + step.seconds["old"] - passes
                step.seconds |= {
                    "update, compact": step.seconds["update"] - saved,
                    "step, compact": step.seconds["step"] - saved,
                }
        peaks = None
        if not args.no_memory:
            peaks = tuple(_memory(side, shape.name, args, folder, mine[0].lengths, rows) for side in ("ours", "trl"))
    return _rows(shape, mine, theirs, rows, peaks, device)


def _fastest_microbatch(shape: Shape, folder: str, device: torch.device, lengths: list[int]) -> int:
    """Return the rows of TRL's fastest micro-batch, by its passes over one rollout."""
    from trl_side import TRLSide

    fastest: list[int] = []
    side = TRLSide(shape, folder, device, shape.trl_microbatches[0])
    side.run(lambda _: lengths, lambda _, step: fastest.append(side.fastest_microbatch()))
    return fastest[0]


def _rows(
    shape: Shape,
    mine: list[Step],
    theirs: list[Step],
    microbatch: int,
    peaks: tuple[float, ...] | None,
    device: torch.device,
) -> list[str]:
    rates = measure(device, getattr(torch, shape.dtype))
    floors = {
        "rollout": [rollout_floor(shape, step.lengths, step.prompt_tokens, rates) for step in mine],
        "update": [update_floor(shape, step.lengths, step.prompt_tokens, rates) for step in mine],
    }
    floors["step"] = [sum(pair) for pair in zip(floors["rollout"], floors["update"], strict=True)]
    lengths = [length for step in mine for length in step.lengths]
    rows = [
        f"| **{shape.name}**: {shape.about}; {shape.prompts} x {shape.group_size}, completions of mean "
        f"{statistics.mean(lengths):.0f}, cap {shape.cap}; mu={shape.updates}, beta={shape.beta}; TRL's micro-batch "
        f"{microbatch}; floor from {rates} | | | | | | |"
    ]
    for phase in ("rollout", "scoring", "update", "step"):
        our, their = _column(mine, phase), _column(theirs, phase)
        cells = [f"{phase}, s", spread(our), spread(their), _ratio(their, our)]
        compact = _column(theirs, f"{phase}, compact")
        cells.append(f"{spread(compact)}; {_ratio(compact, our)}" if compact else "")
        if phase in floors:
            share = statistics.median([floor / time for floor, time in zip(floors[phase], our, strict=True)])
            cells += [f"{statistics.median(floors[phase]):.3f}", f"{100 * share:.0f} %"]
        rows.append(_row(cells))
    shares = [statistics.median(step.seconds["old"] / step.seconds["step"] for step in side) for side in (mine, theirs)]
    rows.append(_row(["old and reference log-probs, share of the step", *(f"{100 * share:.1f} %" for share in shares)]))
    for name, phase, count in (("generated", "rollout", "generated"), ("trained", "update", "trained")):
        speeds = [
            [getattr(step, count) * (shape.updates if phase == "update" else 1) / step.seconds[phase] for step in side]
            for side in (mine, theirs)
        ]
        rows.append(_row([f"{name} tokens/s", *(spread(speed, 0) for speed in speeds), _ratio(*speeds)]))
    if peaks is not None:
        rows.append(_row(["peak memory of the update above the model, MiB", *(f"{peak:.0f}" for peak in peaks),
                          f"{peaks[1] / peaks[0]:.2f} x"]))  # fmt: skip
    return rows


def _column(steps: list[Step], phase: str) -> list[float]:
    return [step.seconds[phase] for step in steps if phase in step.seconds]


def _ratio(numerators: list[float], denominators: list[float]) -> str:
    """Take ratios within each turn, so that disturbances of the machine cancel."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True) if below]
    return f"{spread(ratios)} x" if ratios else ""


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells + [""] * (7 - len(cells))) + " |"


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = args.config or ["tiny"]
    if args.all:
        wanted = (device.type == "cuda", False)
        names = [name for name, shape in SHAPES.items() if (shape.cuda_only, shape.pretrained) == wanted]
    shapes = {name: smoke(SHAPES[name]) if args.smoke else SHAPES[name] for name in names}
    shapes = {name: with_questions(shape, args.gsm8k) if shape.pretrained else shape for name, shape in shapes.items()}
    if args.memory_of:
        job = json.loads(args.job)
        print(peak_of_update(args.memory_of, shapes[names[0]], job["folder"], device, job["lengths"], job["rows"]))
        return
    if importlib.util.find_spec("trl") is None:
        sys.exit("TRL is not installed: pip install -e .[bench]")
    import trl
    from agreement import agreement

    lines = [f"`{shlex.join(['python', *sys.argv])}`", "", f"{machine(device)}, trl {trl.__version__}", ""]
    lines += [*agreement(device), ""]
    lines += [
        "| | ours | TRL as shipped | ratio | TRL, head on completions only; ratio | floor, s | share reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in shapes.values():
        lines += compare(shape, args, device)
    table = "\n".join(lines)
    print(table)
    if args.out:
        args.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
