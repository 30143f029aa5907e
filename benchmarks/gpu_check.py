"""All checks that need a GPU, in one table and at most eight minutes.

    make gpu-check
    python benchmarks/gpu_check.py --device cpu --tiny      # tries this script, with tiny models

Each part runs in a separate process with a limit; time that a part leaves is for those after it. A part that fails or
takes too long is a row with the reason, after the rows that it has printed. The exit code is 1 if a part has failed or
a goal is missed.

- ``tests``: those marked ``cuda``.
- ``memory``: two iterations of each method on LFM2.5-1.2B's architecture, as ``benchmarks/memory.py`` measures them.
- ``LFM2.5-1.2B`` and ``SmolLM2-135M``: a step of this library and one of TRL after a step to warm up each, for 8 x 8
  completions of 512 tokens, with random weights; TRL generates as it does without vLLM, in a micro-batch of a fixed
  size. Rollouts are compared with the floor of ``benchmarks/floors.py``, with and without CUDA graphs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).resolve()
MARK = "gpu-check row: "
FAILED, MISSED = "failed", "missed"
FLOOR_SHARE = 0.5
"""The goal: rollouts take at most twice the time that reading weights and cache would."""
GOALS = {"GRPO": 4.1, "GRPO + refinement": 4.3}
"""The most GB that a method may take."""
PPO_SHARE = 0.57
"""The most that GRPO may take of what PPO with a separate critic takes."""


class Row(NamedTuple):
    """One row of the table."""

    part: str
    what: str
    ours: str
    beside: str = ""
    result: str = ""

    @property
    def is_good(self) -> bool:
        return not self.result.startswith((FAILED, MISSED))


class Part(NamedTuple):
    """A part of the check: its limit in seconds, and what measures its rows."""

    seconds: int
    rows: Callable[[argparse.Namespace], Iterator[Row]]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few tokens, without goals")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--seconds", type=int, help="limit of each part (default: its own, 8 minutes together)")
    parser.add_argument("--out", type=Path, help="file to write the table to, besides stdout")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# -- the parts --------------------------------------------------------------------------------------------------------


def tests(args: argparse.Namespace) -> Iterator[Row]:
    """Run the tests marked ``cuda``."""
    chosen = "tests/functional/test_logprobs.py" if args.tiny else "tests"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or ["nothing was printed"]
    summary = lines[-1].strip("= ")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    result = "" if done.returncode == 0 else f"{FAILED}: {'; '.join(failed) or summary}"
    yield Row("tests", "marked cuda", summary, result=result)


def memory(args: argparse.Namespace) -> Iterator[Row]:
    """Measure the peak memory of each method."""
    import torch
    from architectures import build, write_weights
    from memory import METHODS, measure
    from memory import parse_arguments as memory_arguments
    from meters import MIB

    sizes = "--shape lfm2-tiny --prompts 2 --group 2 --prompt-tokens 16 --tokens 4" if args.tiny else ""
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        chosen = memory_arguments(["--device", args.device, *sizes.split()])
        chosen.weights = build(chosen.shape, Path(temporary) / "model")
        write_weights(chosen.weights, args.device, torch.bfloat16)
        for method in METHODS:
            if method == "SFT":
                continue
            chosen.worker = method
            peaks = measure(chosen)["peaks"]
            _free()
            totals[method] = peak = max(peaks.values()) * MIB / 1e9
            phase = max(peaks, key=lambda name: peaks[name])
            beside, result = "", ""
            if method in GOALS and not args.tiny:
                beside, result = f"goal: at most {GOALS[method]}", _verdict(peak <= GOALS[method])
            yield Row("memory", f"{method}, GB", f"{peak:.2f} ({phase})", beside, result)
            if method.startswith("PPO"):
                share = totals["GRPO"] / peak
                has_goal = method == "PPO separate" and not args.tiny
                beside = f"goal: at most {PPO_SHARE:.0%}" if has_goal else ""
                result = _verdict(share <= PPO_SHARE) if has_goal else ""
                yield Row("memory", f"GRPO's share of {method}", f"{share:.0%}", beside, result)


def beside_trl(part: str, name: str, args: argparse.Namespace) -> Iterator[Row]:
    """Measure a step of this library, with and without graphs, and one of TRL."""
    import torch
    from floors import measure, rollout_floor
    from our_side import OurSide, Step
    from shapes import SHAPES, build, smoke

    device = torch.device(args.device)
    shape = replace(SHAPES[name], mean=None)
    if args.tiny:
        shape = smoke(shape)
    read = replace(shape, dtype="bfloat16") if shape.precision == "bf16-mixed" else shape
    rates = measure(device, getattr(torch, read.dtype))

    def floor_share(step: Step) -> float:
        return rollout_floor(read, step.lengths, step.prompt_tokens, rates) / step.seconds["rollout"]

    with tempfile.TemporaryDirectory() as temporary:
        folder = build(shape, Path(temporary) / "model", device=args.device)
        ours = OurSide(shape, folder, device, memory=True)
        mine = [ours.step(1), ours.step(2)]
        (line,) = (line for line in ours.module.policy.shortcuts.lines() if "graphed_decoding" in line)
        state = line.split(": ", 1)[1]
        del ours
        _free()
        used = state == "used" or device.type != "cuda"
        yield Row(part, "graphed_decoding", state, result="" if used else f"{FAILED}: {state}")
        share = floor_share(mine[1])
        yield Row(part, "rollout's floor, share reached", f"{share:.0%}",
                  "" if args.tiny else f"goal: at least {FLOOR_SHARE:.0%}",
                  "" if args.tiny else _verdict(share >= FLOOR_SHARE))  # fmt: skip
        yield from _compared(part, mine[1], None)

        launched = OurSide(shape, folder, device, memory=True, without=["graphed_decoding"])
        launched.step(1)
        plain = launched.step(2)
        del launched
        _free()
        ratio = plain.seconds["rollout"] / mine[1].seconds["rollout"]
        yield Row(part, "rollout without graphs, s", f"{plain.seconds['rollout']:.2f}",
                  f"{floor_share(plain):.0%} of the floor", f"{ratio:.2f} x")  # fmt: skip

        from trl_side import TRLSide  # the only import of TRL, after all that does not need it

        theirs: list[Step] = []
        trl = TRLSide(shape, folder, device, shape.trl_microbatches[-1], steps=len(mine), memory=True)
        trl.run(lambda turn: mine[turn].lengths, lambda _, step: theirs.append(step))
        yield from _compared(part, mine[1], theirs[1])


def _compared(part: str, mine: Any, theirs: Any) -> Iterator[Row]:
    """Rows of one step beside TRL's, or without it."""

    def row(what: str, ours: float, trl: float | None, digits: int, larger_is_better: bool = False) -> Row:
        if trl is None:
            return Row(part, what, f"{ours:.{digits}f}")
        ratio = ours / trl if larger_is_better else trl / ours
        return Row(part, what, f"{ours:.{digits}f}", f"TRL {trl:.{digits}f}", f"{ratio:.2f} x")

    for phase in ("step", "rollout", "update"):
        yield row(f"{phase}, s", mine.seconds[phase], theirs and theirs.seconds[phase], 2)
    yield row("generated tokens/s", mine.generated / mine.seconds["rollout"],
              theirs and theirs.generated / theirs.seconds["rollout"], 0, larger_is_better=True)  # fmt: skip
    peaks = [side and max(side.peaks.values()) * 2**20 / 1e9 for side in (mine, theirs)]
    yield row("peak memory above the model, GB", peaks[0], peaks[1], 2)


PARTS = {
    "tests": Part(60, tests),
    "memory": Part(140, memory),
    "LFM2.5-1.2B": Part(160, lambda args: beside_trl("LFM2.5-1.2B", "lfm2.5-1.2b", args)),
    "SmolLM2-135M": Part(110, lambda args: beside_trl("SmolLM2-135M", "smollm2-135m", args)),
}


def _verdict(is_reached: bool) -> str:
    return "reached" if is_reached else MISSED


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- each in a separate process -------------------------------------------------------------------------------------


def run_part(name: str, limit: float, args: argparse.Namespace) -> list[Row]:
    """Run a part, and return its rows, the last one with the reason if it has failed."""
    command = [sys.executable, str(SCRIPT), "--part", name, "--device", args.device, *(["--tiny"] if args.tiny else [])]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
        try:
            code = process.wait(limit)
            reason = f"exit code {code}"
        except subprocess.TimeoutExpired:
            code, reason = None, f"it took longer than {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        errors.seek(0)
        rows = [Row(*json.loads(line[len(MARK) :])) for line in out if line.startswith(MARK)]
        if code:
            reason = next((line.strip() for line in reversed(errors.readlines()) if line.strip()), reason)
    if code != 0:
        rows.append(Row(name, "all of it", "", result=f"{FAILED}: {reason}"))
    # A later row about the same thing knows more.
    return list({(row.part, row.what): row for row in rows}.values())


def work(args: argparse.Namespace) -> None:
    """Measure a part in this process."""
    for row in PARTS[args.part].rows(args):
        print(MARK + json.dumps(row), flush=True)


def check(args: argparse.Namespace) -> int:
    """Run the parts, print the table, and return the exit code."""
    import torch
    from meters import machine

    lines = [f"`{shlex.join(['python', 'benchmarks/gpu_check.py', *sys.argv[1:]])}`", ""]
    lines += [f"{machine(torch.device(args.device))}; {time.strftime('%Y-%m-%d')}, commit {_commit()}", ""]
    lines += ["| part | what | ours | beside | result |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    start, allowed, is_good = time.monotonic(), 0.0, True
    for name in args.only:
        allowed += PARTS[name].seconds
        limit = max(0.0, start + allowed - time.monotonic()) if args.seconds is None else args.seconds
        for row in run_part(name, limit, args):
            is_good &= row.is_good
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
            print(lines[-1], flush=True)
    lines += ["", f"{time.monotonic() - start:.0f} s"]
    print("\n".join(lines[-2:]))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return 0 if is_good else 1


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.part:
        work(args)
        return 0
    if args.device == "cpu" and not args.tiny:
        sys.exit("gpu-check: a CPU would take hours: add --tiny, which tries the script with tiny models")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                "gpu-check: torch finds no CUDA device here: run it on a machine that has one, or try the script "
                "with --device cpu --tiny"
            )
    return check(args)


if __name__ == "__main__":
    sys.exit(main())
