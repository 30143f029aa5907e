"""What ``data.rollouts_ahead`` saves: a step with a deliberately slow engine, with and without it.

    python benchmarks/rollouts_ahead.py
    python benchmarks/rollouts_ahead.py --seconds 1.0 0.5 --steps 10

A tiny policy trains on the CPU. The engine samples from a copy of the weights, as a server does, and sleeps; the update
sleeps too. For each pair of durations both variants run in turn. ``step`` is the median wall time between the ends of
two steps, the first two omitted. Without look-ahead it should be the sum of both durations, with it the longer one,
plus what a step of the tiny policy takes. The last two columns are the curves ``throughput/learner_waits`` and
``throughput/engine_waits``: the shares of a step in which either side waits for the other.
"""

from __future__ import annotations

import argparse
import copy
import logging
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from meters import machine
from shapes import SHAPES, Letters, TokenVerifier, build, smoke

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, RolloutDataModule, SamplingParams
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.types import Completion

PAIRS = ((0.6, 0.2), (0.4, 0.4), (0.2, 0.6))
WAITS = ("throughput/learner_waits", "throughput/engine_waits")


class SlowServer(Engine):
    """Samples from a copy of the weights, and takes a given time for it.

    Args:
        seconds: how long a rollout lasts at least.
    """

    remote = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def start(self, policy: Policy, longest_row: int) -> None:
        self.copy, self.inner = copy.deepcopy(policy), InProcessEngine()
        self.inner.start(self.copy, longest_row)

    def push(self, policy: Policy, version: str) -> None:
        self.copy.load_state_dict(policy.state_dict())

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        time.sleep(self.seconds)
        return self.inner.generate(requests, sampling, on_finish)

    def stop(self) -> None:
        self.inner.stop()


class SlowGRPO(GRPOModule):
    """GRPO whose update takes a given time."""

    seconds = 0.0

    def targets(self, experience: Experience, metrics: StepMetrics) -> Experience:
        time.sleep(self.seconds)
        return super().targets(experience, metrics)


class Clock(pl.Callback):
    """Notes when steps end, and what they log."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def measure(model: Path, rollout_s: float, update_s: float, ahead: int, steps: int) -> Clock:
    """Train some steps with these durations."""
    shape, clock = smoke(SHAPES["tiny"]), Clock()
    module = SlowGRPO(policy=PolicyConfig(path=str(model)), verifiers=[TokenVerifier()], beta=0.0)
    module.seconds = update_s
    data = RolloutDataModule(
        Letters(shape), prompts_per_step=shape.prompts, group_size=shape.group_size, engine=SlowServer(rollout_s),
        rollouts_ahead=ahead, sampling=SamplingParams(max_new_tokens=shape.cap),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[clock],
        default_root_dir=str(model),
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    trainer.fit(module, datamodule=data)
    return clock


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", nargs=2, type=float, metavar=("ROLLOUT", "UPDATE"), help="default: three pairs")
    parser.add_argument("--steps", type=int, default=8, help="steps per variant; the first two do not count")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "grpo_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine(torch.device('cpu'))}\n")
    print("| rollout, s | update, s | `rollouts_ahead` | step, s | learner waits | engine waits |")
    print("|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        model = build(smoke(SHAPES["tiny"]), Path(folder))
        for rollout_s, update_s in [tuple(args.seconds)] if args.seconds else PAIRS:
            for ahead in (0, 1):
                clock = measure(model, rollout_s, update_s, ahead, args.steps)
                step = statistics.median(after - before for before, after in pairwise(clock.ends[1:]))
                waits = [f"{clock.logged[-1][name]:.0%}" if name in clock.logged[-1] else "" for name in WAITS]
                print("| " + " | ".join([f"{rollout_s:g}", f"{update_s:g}", str(ahead), f"{step:.2f}", *waits]) + " |")


if __name__ == "__main__":
    main()
