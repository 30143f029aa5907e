"""What the critic's options buy PPO on the quickstart task: its own lambda, lambda by length, and values to start from.

    python benchmarks/ppo_values.py
    python benchmarks/ppo_values.py --tokens 200000 --seeds 1 2 3 4 5

All variants continue from one warm start, the shipped tiny decoder after a short supervised run, with each seed, until
they have sampled ``--tokens`` completion tokens. ``plain`` has the options of configs/quickstart_ppo.yaml, with
smaller steps. ``pretrained`` fits its critic to ``--stored`` steps of rollouts of the warm start, which are sampled
once for all seeds, beside the ``--tokens``; ``warmed up`` trains it alone for as many steps, on its own rollouts,
which are among them. Accuracy is greedy, over the validation split. The explained variance of the values is a mean
over the first and the last five steps in which the policy learns.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

# Read when torch is imported: on shared cores, threads that spin while waiting cost more than they save.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import lightning.pytorch as pl
import torch
from meters import machine
from small_runs import Found, optimizer, trainer, warm_start

from grpo_lightning import GRPOModule, PolicyConfig, PPOModule, RolloutDataModule, SamplingParams
from grpo_lightning.algorithms import ValuePretraining
from grpo_lightning.callbacks import RolloutLogger, TokenBudget
from grpo_lightning.tasks import Arithmetic
from grpo_lightning.verifiers import MathVerifier

UPDATES = 2
SHOWN = 5
"""Steps over which the explained variance is averaged."""
VARIANTS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "value_lam 1": {"value_lam": 1.0},
    "value_lam 1, lam_alpha 1": {"value_lam": 1.0, "lam_alpha": 1.0},
    "value_lam 1, warmed up": {"value_lam": 1.0, "critic_warmup_steps": -1},
    "value_lam 1, pretrained": {"value_lam": 1.0, "value_pretraining": ValuePretraining("")},
}
"""Options of ``PPOModule``; the number of warm-up steps and the folder of the rollouts are filled in."""


def row(found: Found, warm_up: int) -> dict[str, float]:
    last, name = found.steps[-1], "value/explained_variance"
    learned = [step[name] for step in found.steps[warm_up:] if name in step] or [0.0]  # not where all returns agree
    return {
        "accuracy": found.accuracy,
        "steps": len(found.steps),
        "sampled": last["total/rollout_tokens"],
        "first": statistics.fmean(learned[:SHOWN]),
        "last": statistics.fmean(learned[-SHOWN:]),
        "cpu": last["total/cpu_s"],
    }


def data_of(args: argparse.Namespace, seed: int) -> RolloutDataModule:
    task = Arithmetic(prompt_template="{prompt}", max_value=60, val_size=args.val_size)
    sampling = SamplingParams(max_new_tokens=40)
    return RolloutDataModule(task, args.prompts, args.group_size, sampling, val_batch_size=200, seed=seed)


def store(args: argparse.Namespace, policy: str, folder: str) -> None:
    """Store rollouts of the warm start, on prompts of another seed."""
    at_rest = partial(optimizer, 0.0)
    module = GRPOModule(PolicyConfig(policy), [MathVerifier()], at_rest, beta=0.0)
    fitted = trainer(folder, [RolloutLogger()], max_steps=args.stored, limit_val_batches=0)
    fitted.fit(module, datamodule=data_of(args, 100))


def run(args: argparse.Namespace, variant: str, seed: int, policy: str, stored: str) -> dict[str, float]:
    """Train one variant with one seed, and validate it at the end."""
    found, options = Found(), dict(VARIANTS[variant])
    if "critic_warmup_steps" in options:
        options["critic_warmup_steps"] = UPDATES * args.stored
    if "value_pretraining" in options:
        options["value_pretraining"] = ValuePretraining(stored, epochs=args.epochs)
    module = PPOModule(
        PolicyConfig(policy), [MathVerifier()], partial(optimizer, args.lr), beta=0.0, updates_per_rollout=UPDATES,
        critic="separate", value_lr=args.value_lr, **options,
    )  # fmt: skip
    pl.seed_everything(seed, verbose=False)
    data = data_of(args, seed)
    with tempfile.TemporaryDirectory() as folder:
        fitted = trainer(folder, [found, TokenBudget(args.tokens)], max_steps=100_000, limit_val_batches=0)
        fitted.fit(module, datamodule=data)
        trainer(folder, [found]).validate(module, datamodule=data, verbose=False)
    return row(found, options.get("critic_warmup_steps", 0) // UPDATES)


def line(variant: str, rows: Sequence[dict[str, float]], against: Sequence[dict[str, float]]) -> str:
    """A line of the table: means over the seeds; the accuracy of each, and its mean gain over the first variant's."""
    mean = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    gains = [row["accuracy"] - other["accuracy"] for row, other in zip(rows, against, strict=True)]
    spread = f" +- {statistics.stdev(gains) / len(gains) ** 0.5:.3f}" if len(gains) > 1 else ""
    each = ", ".join(f"{row['accuracy']:.3f}" for row in rows)
    gain = "" if rows is against else f"{statistics.fmean(gains):+.3f}{spread}"
    return (
        f"| {variant} | {mean['accuracy']:.3f} ({each}) | {gain} | {mean['first']:.2f} | {mean['last']:.2f} | "
        f"{mean['steps']:.0f} | {mean['sampled']:.0f} | {mean['cpu']:.1f} |"
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=40_000, help="completion tokens sampled to learn from, per run")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--value-lr", type=float, default=1e-3)
    parser.add_argument(
        "--stored", type=int, default=8, help="steps of rollouts to pretrain values on, or to warm up in"
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes over the stored rollouts")
    parser.add_argument("--val-size", type=int, default=200)
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
    print(f"`{shlex.join(['python', 'benchmarks/ppo_values.py', *(sys.argv[1:] if argv is None else argv)])}`\n")
    print(f"{machine(torch.device('cpu'))}\n", flush=True)
    rows = {variant: list[dict[str, float]]() for variant in args.variants}
    with tempfile.TemporaryDirectory() as policy, tempfile.TemporaryDirectory() as stored:
        start = warm_start(data_of(args, 1), MathVerifier(), args.warm_accuracy, args.warm_steps, policy)
        store(args, policy, stored)
        for seed in args.seeds:
            for variant in args.variants:
                rows[variant].append(run(args, variant, seed, policy, stored))
                print(f"{variant} {seed}: {rows[variant][-1]}", file=sys.stderr, flush=True)
    print("| variant | accuracy (each seed) | gain | explained, first | explained, last | steps | sampled | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| warm start | {start:.3f} | | | | | | |")
    for variant in args.variants:
        print(line(variant, rows[variant], rows[args.variants[0]]))


if __name__ == "__main__":
    main()
