"""A step of this library in float32, in ``bf16-mixed``, and with bfloat16 weights: time, and the sampler's gap.

    python benchmarks/precision.py --model FOLDER --gsm8k FOLDER --repeats 5
    python benchmarks/precision.py --model FOLDER --gsm8k FOLDER --repeats 5 --lora 16

The three alternate in one process, on questions of GSM8K with the completions that each samples, so their numbers of
tokens differ a little: the ratios are of time per token, generated ones in the rollout and all in the update and in the
step. The first turn of each is not counted. Whether bfloat16 pays depends on the CPU: see its flags (``avx512_bf16``,
``amx_bf16``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Read when torch is imported: on shared cores, threads that spin while waiting cost more than they save.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from meters import machine, spread
from our_side import OurSide, Step
from shapes import SHAPES, Shape, build, smoke, with_questions

PRECISIONS = {
    "float32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bfloat16 weights": {"dtype": "bfloat16", "precision": "bf16-mixed"},
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub name or folder")
    parser.add_argument("--gsm8k", default="openai/gsm8k", help="hub name or folder")
    parser.add_argument("--prompts", type=int, default=2, help="prompts per step")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--tokens", type=int, default=128, help="maximum number of tokens per completion")
    parser.add_argument("--lora", type=int, help="rank of the adapter (default: all weights learn)")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="a small model with random weights, for seconds")
    return parser.parse_args(argv)


def per_token(steps: Sequence[Step], phase: str) -> list[float]:
    """Milliseconds per token of each step."""
    tokens = [step.generated if phase == "rollout" else step.trained for step in steps]
    return [1000 * step.seconds[phase] / count for step, count in zip(steps, tokens, strict=True)]


def measure(shape: Shape, folder: str, repeats: int) -> dict[str, list[Step]]:
    """The steps of each precision, by its name."""
    device = torch.device("cpu")
    sides = {name: OurSide(replace(shape, **changes), folder, device) for name, changes in PRECISIONS.items()}
    steps: dict[str, list[Step]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            step = side.step(1 + turn)
            if turn:
                steps[name].append(step)
    return steps


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    shape = replace(SHAPES["smollm2"], prompts=args.prompts, group_size=args.group, cap=args.tokens, lora=args.lora)
    if args.smoke:
        with tempfile.TemporaryDirectory() as temporary:
            shape = smoke(shape)
            steps = measure(shape, str(build(shape, Path(temporary))), args.repeats)
    else:
        steps = measure(with_questions(shape, args.gsm8k), args.model, args.repeats)
    print(machine(torch.device("cpu")))
    print("| | rollout, ms per token | update, ms | step, ms | float32's step / this | gap, nats per token |")
    print("|---|---|---|---|---|---|")
    plain = per_token(steps["float32"], "step")
    for name, taken in steps.items():
        times = [spread(per_token(taken, phase)) for phase in ("rollout", "update", "step")]
        ratios = spread([slow / fast for slow, fast in zip(plain, per_token(taken, "step"), strict=True)])
        gap = statistics.mean(step.gap for step in taken)
        print(f"| {name} | {' | '.join(times)} | **{ratios}** | {gap:.2g} |")


if __name__ == "__main__":
    main()
