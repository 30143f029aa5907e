"""Train a config at several learning rates, one run per rate and seed, and print a table of what each learned.

    python benchmarks/learning_rates.py --runs RUNS --lr 1e-5 1e-4 4e-4 1e-3 -- --model.init_args.policy.path FOLDER
    python benchmarks/learning_rates.py --runs RUNS_FULL --lr 1e-5 1e-4 -- --model.init_args.policy.lora null

What follows ``--`` goes to ``grpo fit``; ``--model.init_args.policy.lora null`` trains all weights instead of the
adapter. A run that has finished is not repeated. ``val accuracy`` lists all validations, the first before any training;
the other columns are means over the last ``--last`` steps, and the CPU time is that of the steps.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grpo_lightning.__main__ import main as grpo
from grpo_lightning.commands.compare.runs import Run, read_run

ROOT = Path(__file__).parents[1]
COLUMNS = ("reward/mean", "completion/truncated", "reward/groups_without_signal", "policy/update_kl", "optim/grad_norm")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "smollm2_json.yaml")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--lr", nargs="+", required=True, help="learning rates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--last", type=int, default=5, help="steps at the end of a run that are averaged")
    parser.add_argument("options", nargs="*", help="after --: options of grpo fit")
    return parser.parse_args(argv)


def train(config: Path, folder: Path, lr: str, seed: int, options: Sequence[str]) -> Run:
    """Train one run, unless its folder holds a finished one, and read it."""
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        command = ["fit", "--config", str(config), *options, "--run_dir", str(folder), "--seed_everything", str(seed)]
        command += ["--model.init_args.optimizer.init_args.lr", lr]
        grpo(command)
    return read_run(folder)


def line(lr: str, seed: int, run: Run, last: int) -> str:
    """Return the line of the table for one run."""
    accuracy = " ".join(f"{value:.1%}" for value in run.curves["val/accuracy"].values)
    minutes = (run.last("total/cpu_s") or 0.0) / 60
    return (
        "| "
        + " | ".join([lr, str(seed), accuracy, *(mean(run, name, last) for name in COLUMNS), f"{minutes:.1f}"])
        + " |"
    )


def mean(run: Run, name: str, last: int) -> str:
    """Return the mean of a curve's last values; nothing if no step had a value, as without any signal."""
    return f"{np.mean(run.curves[name].values[-last:]):.2g}" if name in run.curves else ""


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    print(f"`{shlex.join(['python', *sys.argv])}`\n")
    print("| lr | seed | val accuracy | " + " | ".join(f"`{name}`" for name in COLUMNS) + " | CPU min |")
    print("|---|" + "---:|" * (len(COLUMNS) + 3))
    for lr in args.lr:
        for seed in args.seeds:
            folder = args.runs / f"{lr}-seed{seed}"
            print(line(lr, seed, train(args.config, folder, lr, seed, args.options), args.last), flush=True)


if __name__ == "__main__":
    main()
