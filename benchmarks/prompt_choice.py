"""What the choice of prompts buys: passes over all of them, silent groups replaced, and a curriculum, at equal tokens.

    python benchmarks/prompt_choice.py
    python benchmarks/prompt_choice.py --tasks quickstart --tokens 400000 --seeds 1 2 3 4 5

Each task has one warm start, the shipped tiny decoder after a short supervised run; every variant continues from it,
with each seed, until it has sampled ``--tokens`` completion tokens to learn from. What was discarded counts. A
curriculum knows only prompts that it has visited, so there are few enough rows that each is visited many times.
``quickstart`` is the task of configs/quickstart.yaml; ``chain_sum`` is reasoning-gym's, sums of two or three numbers of
one or two digits. Accuracy is greedy, over the validation split. The shares are means over the steps of a run, then
over the seeds.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# Read when torch is imported: on shared cores, threads that spin while waiting cost more than they save.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import lightning.pytorch as pl
import torch
from meters import machine
from small_runs import Found, optimizer, trainer, warm_start

from grpo_lightning import GRPOModule, PolicyConfig, RolloutDataModule, SamplingParams
from grpo_lightning.callbacks import TokenBudget
from grpo_lightning.rollout import ResampleConfig
from grpo_lightning.tasks import Arithmetic, ReasoningGym, Task
from grpo_lightning.verifiers import MathVerifier, ReasoningGymVerifier, Verifier

ROWS = 400
"""Training prompts: about five visits of each in 400,000 tokens."""


@dataclass(frozen=True)
class Setting:
    """A task with its verifier, and the limit of tokens per completion."""

    task: Callable[[], Task]
    verifier: Callable[[], Verifier]
    cap: int


SETTINGS: Mapping[str, Setting] = {
    "quickstart": Setting(
        partial(Arithmetic, prompt_template="{prompt}", max_value=60, val_size=200, train_size=ROWS), MathVerifier, 40
    ),
    "chain_sum": Setting(
        partial(
            ReasoningGym,
            "chain_sum",
            options={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
            prompt_template="{prompt}",
            train_size=ROWS,
        ),
        ReasoningGymVerifier,
        24,
    ),
}
VARIANTS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "resampled": {"resample_silent": ResampleConfig()},
    "curriculum": {"curriculum": "informative"},
}


def row(found: Found) -> dict[str, float]:
    last = found.steps[-1]
    silent = statistics.fmean(step["reward/groups_without_signal"] for step in found.steps)
    return {
        "accuracy": found.accuracy,
        "steps": len(found.steps),
        "sampled": last["total/rollout_tokens"],
        "learned": last["total/train_tokens"] / last["total/rollout_tokens"],
        "silent": silent,
        "cpu": last["total/cpu_s"],
    }


def data_of(setting: Setting, args: argparse.Namespace, seed: int, **options: Any) -> RolloutDataModule:
    sampling = SamplingParams(max_new_tokens=setting.cap)
    return RolloutDataModule(
        setting.task(), args.prompts, args.group_size, sampling, val_batch_size=200, seed=seed, **options
    )


def run(setting: Setting, args: argparse.Namespace, variant: str, seed: int, policy: str) -> dict[str, float]:
    """Train one variant with one seed, and validate it at the end."""
    found = Found()
    module = GRPOModule(PolicyConfig(policy), [setting.verifier()], partial(optimizer, args.lr), beta=0.0)
    pl.seed_everything(seed, verbose=False)
    data = data_of(setting, args, seed, **VARIANTS[variant])
    with tempfile.TemporaryDirectory() as folder:
        fitted = trainer(folder, [found, TokenBudget(args.tokens)], max_steps=100_000, limit_val_batches=0)
        fitted.fit(module, datamodule=data)
        trainer(folder, [found]).validate(module, datamodule=data, verbose=False)
    return row(found)


def line(task: str, variant: str, rows: Sequence[dict[str, float]], against: Sequence[dict[str, float]]) -> str:
    """A line of the table: means over the seeds; the accuracy with all of them, and its mean gain over ``plain``."""
    mean = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    gains = [row["accuracy"] - other["accuracy"] for row, other in zip(rows, against, strict=True)]
    spread = f" +- {statistics.stdev(gains) / len(gains) ** 0.5:.3f}" if len(gains) > 1 else ""
    each = ", ".join(f"{row['accuracy']:.3f}" for row in rows)
    gain = "" if rows is against else f"{statistics.fmean(gains):+.3f}{spread}"
    return (
        f"| {task} | {variant} | {mean['accuracy']:.3f} ({each}) | {gain} | {mean['steps']:.0f} | "
        f"{mean['sampled']:.0f} | {mean['learned']:.0%} | {mean['silent']:.0%} | {mean['cpu']:.1f} |"
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=400_000, help="completion tokens sampled to learn from, per run")
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warm-accuracy", type=float, default=0.4, help="accuracy at which the warm start ends")
    parser.add_argument("--warm-steps", type=int, default=600, help="steps at which it ends in any case")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "grpo_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"`{shlex.join(['python', 'benchmarks/prompt_choice.py', *(sys.argv[1:] if argv is None else argv)])}`\n")
    print(f"{machine(torch.device('cpu'))}\n", flush=True)
    lines = []
    for task in args.tasks:
        setting, rows = SETTINGS[task], {variant: list[dict[str, float]]() for variant in VARIANTS}
        with tempfile.TemporaryDirectory() as policy:
            start = warm_start(
                data_of(setting, args, 1), setting.verifier(), args.warm_accuracy, args.warm_steps, policy
            )
            for seed in args.seeds:
                for variant in VARIANTS:
                    began = time.perf_counter()
                    rows[variant].append(run(setting, args, variant, seed, policy))
                    seconds = time.perf_counter() - began
                    print(f"{task} {variant} {seed}: {rows[variant][-1]} {seconds:.0f} s", file=sys.stderr, flush=True)
        lines.append(f"| {task} | warm start | {start:.3f} | | | | | | |")
        lines += [line(task, variant, rows[variant], rows["plain"]) for variant in VARIANTS]
    print(
        "| task | prompts | accuracy (each seed) | gain over plain | steps | sampled tokens | learned from "
        "| silent groups | CPU s |\n|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
