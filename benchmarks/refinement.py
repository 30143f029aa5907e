"""What verifier refinement costs: a training step without it, with ``distill`` and with ``in_context``, by phases.

    python benchmarks/refinement.py
    python benchmarks/refinement.py --config small --repeats 5

The three take turns in one process, A B C A B C, with one model and on the same attempts; the first turn is left out.
The budget of further attempts is G/4 a group. Seconds are the processor's on the CPU, the wall's on CUDA, and
``update`` holds all of a step that is none of the others. Ratios are those of neighbours in turn.

``quickstart`` is configs/quickstart.yaml: its warm start is trained first (a minute), and then never moves. The other
configurations are those of vs_trl.py: random weights, random letters, and a reward that fails about half of the
completions; those that did not run into the cap can be refined.
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

# Read when torch loads: threads that spin while they wait cost more than they save on shared cores.
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
    parser.add_argument("--repeats", type=int, default=3, help="turns of each that count")
    parser.add_argument("--template", default="{feedback}", help="of the turn between two attempts")
    parser.add_argument("--beta", type=float, help="in place of the configuration's; above 0, a step has a reference")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--policy", type=Path, help="for quickstart: a warm start that is there already")
    parser.add_argument("--smoke", action="store_true", help="so small that it takes seconds")
    return parser.parse_args(argv)


def warm_start(folder: Path, steps: int | None) -> Path:
    """The policy that configs/quickstart.yaml starts from."""
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", "configs/quickstart_sft.yaml"]
    command += ["--run_dir", str(folder), *([] if steps is None else ["--trainer.max_steps", str(steps)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the warm start failed:\n{done.stderr[-2000:]}")
    return folder / "policy"


def one_side(args: argparse.Namespace, folder: Path, device: torch.device) -> OurSide:
    """The one that all modes are run by: two models would differ in where their weights lie in memory."""
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
    """Seconds by phase, and what refinement multiplies them with."""
    lines = ["| | " + " | ".join(f"{mode} | ratio" if mode != "without" else mode for mode in MODES) + " |"]
    lines.append("|---" * (2 * len(MODES)) + "|")
    plain = steps["without"]
    for phase in ("rollout", "scoring", "reference", "update", "step"):
        columns = {mode: [_seconds(step, phase) for step in steps[mode]] for mode in MODES}
        cells = [f"{phase}, s", spread(columns["without"], 3)]
        for mode in MODES[1:]:
            ratios = [one / other for one, other in zip(columns[mode], columns["without"], strict=True) if other > 1e-3]
            cells += [spread(columns[mode], 3), f"{spread(ratios)} x" if ratios else ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    refined = steps["in_context"]
    lines.append(
        f"Prompts of {_mean(plain, 'prompt_tokens'):.0f} tokens, completions of {_mean(plain, 'lengths'):.0f}; "
        f"{statistics.mean(len(step.further) for step in refined):.0f} further attempts a step, of "
        f"{_mean(refined, 'further'):.0f} tokens behind conversations of {_mean(refined, 'conversations'):.0f}."
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
        ours = one_side(args, Path(temporary) / "run", device)
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
        f"{budget} further attempts a group, template {args.template!r}, beta={shape.beta}; "
        f"{args.repeats} turns, median (least to most)\n"
    )
    print("\n".join(table({mode: steps[1:] for mode, steps in turns.items()})))


if __name__ == "__main__":
    main()
