"""What a tiny decoder learns in episodes: when to call a calculator, and to guess a number by hints.

    python benchmarks/episodes_learn.py --runs RUNS
    python benchmarks/episodes_learn.py --runs RUNS --studies guess --seeds 1 -- --trainer.max_steps 20

``tools`` trains configs/tools.yaml after its warm start, and as a control the same model on the same task without the
tool, whose warm start has no calls to imitate. ``guess`` trains configs/guess.yaml; ``turns`` does so with PPO, whose
turns are episodes with their return to go, or one episode (``turn_lam``). Each policy is measured on the test
split, before and after RL, greedily and by sampling as in training. What follows ``--`` goes to ``grpo fit`` of both
stages. A run that has finished is not repeated. Intervals are 95 %, over seeds and problems; then come the seeds. CPU
time is that of training with its validations, of the warm start and of RL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meters import machine

from grpo_lightning.__main__ import main as grpo
from grpo_lightning.commands.compare.runs import read_run
from grpo_lightning.commands.compare.statistics import accuracy

CONFIGS = Path(__file__).parents[1] / "configs"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """Options of the two stages."""

    warm_start: Sequence[str] = ()
    training: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """A column of the table: the share of the records it is about for which something holds."""

    holds: Callable[[Record], bool]
    about: Callable[[Record], bool]


@dataclass(frozen=True)
class Study:
    """A shipped config with a warm start, completions sampled per problem, variants, and what is measured."""

    config: str
    samples: int
    variants: Mapping[str, Variant]
    columns: Mapping[str, Column]


def is_correct(record: Record) -> bool:
    return bool(record["correct"])


def calls(record: Record) -> bool:
    return any(message["role"] == "tool" for message in record["prompt"])


def fits_all_hints(record: Record) -> bool:
    """Whether the last guess of a game is a number that all hints before it allow."""
    guess, turns = record["info"].get("guess"), record["prompt"]
    said = [(re.search(r"\d+", turns[i]["content"]), turns[i + 1]["content"]) for i in range(1, len(turns), 2)]
    bounds = [(int(number[0]), hint) for number, hint in said if number]
    return guess is not None and all(guess > n if hint == "higher" else guess < n for n, hint in bounds)


def sampled(kind: str | None = None) -> Callable[[Record], bool]:
    return lambda record: record["sampled_for"] == "pass@k" and record["metadata"].get("kind") == kind


def greedy(*kinds: str | None) -> Callable[[Record], bool]:
    return lambda record: record["sampled_for"] == "accuracy" and record["metadata"].get("kind") in kinds


GAMES = {
    "games won, sampled": Column(is_correct, sampled()),
    "last guess fits all hints, sampled": Column(fits_all_hints, sampled()),
    "games won, greedy": Column(is_correct, greedy(None)),
}
PPO = ["--model.class_path", "PPOModule", "--model.init_args.critic", "separate", "--model.init_args.value_lr", "1e-3",
       "--trainer.max_steps", "200", "--trainer.val_check_interval", "200"]  # fmt: skip
STUDIES: Mapping[str, Study] = {
    "tools": Study(
        "tools",
        4,
        {
            "calculator": Variant(),
            "no tool": Variant(
                ["--data.environment", "null", "--data.task.init_args.calls", "0"], ["--data.environment", "null"]
            ),
        },
        {
            "products: calls, sampled": Column(calls, sampled("product")),
            "repeats: calls, sampled": Column(calls, sampled("repeat")),
            "products: correct, greedy": Column(is_correct, greedy("product")),
            "repeats: correct, greedy": Column(is_correct, greedy("repeat")),
            "correct, greedy": Column(is_correct, greedy("product", "repeat")),
        },
    ),
    "guess": Study("guess", 64, {"hints": Variant()}, GAMES),
    "turns": Study(
        "guess",
        64,
        {
            "PPO": Variant(training=PPO),
            "PPO, turn_lam 0.9": Variant(training=[*PPO, "--model.init_args.turn_lam", "0.9"]),
        },
        GAMES,
    ),
}


def fit(config: str, folder: Path, seed: int, options: Sequence[str]) -> None:
    """Train one stage, unless its folder holds a finished run."""
    if not (folder / "policy").is_dir():
        arguments = ["--config", str(CONFIGS / f"{config}.yaml"), "--run_dir", str(folder)]
        grpo(["fit", *arguments, "--seed_everything", str(seed), *options])


def predictions(run: Path, name: str, options: Sequence[str]) -> list[Record]:
    """The records of a policy's completions of the test split."""
    file = run / name / "predictions.jsonl"
    if not file.is_file():
        grpo(["predict", "--config", str(run / "config.yaml"), "--run_dir", str(run / name), *options])
    return [json.loads(line) for line in file.read_text().splitlines()]


def measured(study: Study, variant: Variant, run: Path, seed: int, options: Sequence[str]) -> dict[str, list[Record]]:
    """Train a variant with a seed, and return the records before and after RL."""
    with contextlib.redirect_stdout(sys.stderr):
        fit(f"{study.config}_sft", run / "warm_start", seed, [*variant.warm_start, *options])
        fit(study.config, run, seed, [*variant.training, *options])  # finds the warm start in its folder
        samples = ["--data.pass_at_k", "1", "--data.pass_samples", str(study.samples)]
        start = ["--warm_start", "null", "--model.init_args.policy.path", str(run / "warm_start" / "policy")]
        end = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
        return {
            "warm start": predictions(run, "before", [*samples, *start]),
            "RL": predictions(run, "after", [*samples, *end]),
        }


def cell(column: Column, records_S: Sequence[Sequence[Record]]) -> str:
    """The mean over all seeds and problems with its interval, and the mean of each seed."""
    x_SQ = np.array([[column.holds(record) for record in records if column.about(record)] for records in records_S])
    interval = accuracy(x_SQ.astype(np.float64))
    each = ", ".join(f"{100 * mean:.1f}" for mean in x_SQ.mean(axis=1))
    low, high = 100 * max(0.0, interval.low), 100 * interval.high
    return f"{100 * interval.mean:.1f} % ({low:.1f} to {high:.1f}): {each}"


def cpu_seconds(run: Path) -> tuple[float, float]:
    """CPU time of the warm start and of RL, with their validations."""
    warm_start, training = (read_run(folder).last("total/cpu_s") or 0.0 for folder in (run / "warm_start", run))
    return warm_start, training


def table(name: str, args: argparse.Namespace) -> list[str]:
    """The lines of a study's table."""
    study = STUDIES[name]
    lines = [f"| {name} | after | " + " | ".join(study.columns) + " | CPU s of each seed |"]
    lines.append("|---|---|" + "---|" * (len(study.columns) + 1))
    for label, variant in study.variants.items():
        runs = {
            seed: args.runs / f"{name}-{re.sub('[^a-z0-9.]+', '-', label.lower())}-seed{seed}" for seed in args.seeds
        }
        found = [measured(study, variant, run, seed, args.options) for seed, run in runs.items()]
        seconds = list(zip(*map(cpu_seconds, runs.values()), strict=True))
        for stage, spent in zip(("warm start", "RL"), seconds, strict=True):
            cells = [cell(column, [records[stage] for records in found]) for column in study.columns.values()]
            lines.append(f"| {label} | {stage} | " + " | ".join(cells) + f" | {', '.join(f'{s:.0f}' for s in spent)} |")
    return lines


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=["tools", "guess"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("options", nargs="*", help="after --: options of grpo fit")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    print(f"`{shlex.join(['python', 'benchmarks/episodes_learn.py', *(sys.argv[1:] if argv is None else argv)])}`\n")
    print(f"{machine(torch.device('cpu'))}", flush=True)
    for name in args.studies:
        print("\n" + "\n".join(table(name, args)), flush=True)


if __name__ == "__main__":
    main()
