"""The cost of verifier refinement: a training step without it, with ``distill`` and with ``in_context``, per phase.

    python benchmarks/refinement.py
    python benchmarks/refinement.py --config small --repeats 5

The three variants alternate in one process, A B C A B C, with one model and on the same first attempts; the first turn
is not counted. The budget of further attempts is G/4 per group. Time is process time on the CPU and wall time on CUDA;
``update`` is the rest of a step after the other phases. Ratios are taken within a turn.

``quickstart`` is configs/quickstart.yaml: its warm start is trained first (one minute) and does not change afterwards.
The other configurations are those of vs_trl.py: random weights, random letters, and a reward that rejects about half of
the completions; those below the token limit can be refined.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

# Read when torch is imported: on shared cores, threads that spin while waiting cost more than they save.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from meters import machine, spread
from our_side import OurSide, Step
from shapes import SHAPES, Shape, build, smoke

from grpo_lightning.rollout import RefinementConfig
from grpo_lightning.tasks import Arithmetic
from grpo_lightning.verifiers import MathVerifier

ROOT = Path(__file__).parents[1]
QUICKSTART = Shape("quickstart", "0.3 M Llama-like, characters", "llama", {}, prompts=32, group_size=8, cap=40)
MODES: tuple[Literal["without", "distill", "in_context"], ...] = ("without", "distill", "in_context")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=[QUICKSTART.name, *SHAPES], default=QUICKSTART.name)
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, per variant")
    parser.add_argument("--template", default="{feedback}", help="template of the turn between two attempts")
    parser.add_argument("--beta", type=float, help="overrides the configuration's; above 0, a step has a reference")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--policy", type=Path, help="for quickstart: an existing warm start")
    parser.add_argument("--smoke", action="store_true", help="small sizes that take seconds")
    return parser.parse_args(argv)


def warm_start(folder: Path, steps: int | None) -> Path:
    """Train the policy from which configs/quickstart.yaml starts."""
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", "configs/quickstart_sft.yaml"]
    command += ["--run_dir", str(folder), *([] if steps is None else ["--trainer.max_steps", str(steps)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the warm start failed:\n{done.stderr[-2000:]}")
    return folder / "policy"


def shared_side(args: argparse.Namespace, folder: Path, device: torch.device) -> OurSide:
    """Build the side that runs all modes: separate models would differ in the memory layout of their weights."""
    shape = QUICKSTART if args.config == QUICKSTART.name else SHAPES[args.config]
    shape = shape if args.beta is None else replace(shape, beta=args.beta)
    module: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if shape.name == QUICKSTART.name:
        path = args.policy or warm_start(folder, steps=2 if args.smoke else None)
        module |= {"verifiers": [MathVerifier()], "max_tokens_per_microbatch": 4096, "max_grad_norm": 1.0}
        data |= {"task": Arithmetic(max_value=60, val_size=200)}
    else:
        shape = smoke(shape) if args.smoke else shape
        path = build(shape, folder)
    return OurSide(shape, path, device, data_options=data, **module)


def table(steps: dict[str, list[Step]]) -> list[str]:
    """Format seconds per phase, and the factors by which refinement multiplies them."""
    lines = ["| | " + " | ".join(f"{mode} | ratio" if mode != "without" else mode for mode in MODES) + " |"]
    lines.append("|---" * (2 * len(MODES)) + "|")
    for phase in ("rollout", "scoring", "reference", "update", "step"):
        columns = {mode: [_seconds(step, phase) for step in steps[mode]] for mode in MODES}
        cells = [f"{phase}, s", spread(columns["without"], 3)]
        for mode in MODES[1:]:
            pairs = zip(columns[mode], columns["without"], strict=True)
            ratios = [refined / plain for refined, plain in pairs if plain > 1e-3]
            cells += [spread(columns[mode], 3), f"{spread(ratios)} x" if ratios else ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    without, in_context = steps["without"], steps["in_context"]
    lines.append(
        f"Prompts of {_mean(without, 'prompt_tokens'):.0f} tokens, completions of {_mean(without, 'lengths'):.0f}; "
        f"{statistics.mean(len(step.further) for step in in_context):.0f} further attempts per step, of "
        f"{_mean(in_context, 'further'):.0f} tokens after conversations of {_mean(in_context, 'conversations'):.0f}."
    )
    return lines


def _seconds(step: Step, phase: str) -> float:
    if phase == "reference":
        return step.seconds["old"]
    return step.seconds[phase] - (step.seconds["old"] if phase == "update" else 0.0)


def _mean(steps: list[Step], name: str) -> float:
    return statistics.mean([value for step in steps for value in getattr(step, name)] or [0])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        ours = shared_side(args, Path(temporary) / "run", device)
        budget = ours.shape.group_size // 4
        turns: dict[str, list[Step]] = {mode: [] for mode in MODES}
        for turn in range(args.repeats + 1):
            for mode in MODES:
                refinement = None
                if mode != "without":
                    refinement = RefinementConfig(mode=mode, budget=budget, template=args.template)
                turns[mode].append(ours.step(1 + turn, refinement=refinement))
            print("turn", turn, {mode: round(steps[-1].seconds["step"], 2) for mode, steps in turns.items()},
                  file=sys.stderr, flush=True)  # fmt: skip
    shape = ours.shape
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine(device)}\n")
    print(
        f"{shape.name}: {shape.about}; {shape.prompts} x {shape.group_size}, cap {shape.cap}, up to "
        f"{budget} further attempts per group, template {args.template!r}, beta={shape.beta}; "
        f"{args.repeats} turns, median (min to max)\n"
    )
    print("\n".join(table({mode: steps[1:] for mode, steps in turns.items()})))


if __name__ == "__main__":
    main()
