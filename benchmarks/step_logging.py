"""What it costs to log a step's numbers: handed to the loggers at once, and by Lightning's ``log``.

    python benchmarks/step_logging.py --repeats 5

Runs of GRPO with either way to log alternate: quickstart's decoder with random weights, 2 prompts x 4 completions of at
most 8 tokens, and a CSV logger. Times are CPU seconds of the process. Ratios are taken within a turn; the first turn is
not counted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from functools import partial

import torch
from lightning.pytorch.loggers import CSVLogger
from meters import machine, spread
from small_runs import DECODER, optimizer, trainer

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import RolloutDataModule, SamplingParams
from grpo_lightning.tasks import Arithmetic
from grpo_lightning.verifiers import MathVerifier


class LightningLog(GRPOModule):
    """Collects nothing, so that each number goes through Lightning's ``log``."""

    def collect_logged(self, step: int) -> None:
        pass


def cpu_s(kind: type[GRPOModule], steps: int, folder: str) -> float:
    """The CPU time of one run."""
    module = kind(PolicyConfig(str(DECODER), init="random"), [MathVerifier()], partial(optimizer, 1e-4))
    sampling = SamplingParams(max_new_tokens=8)
    data = RolloutDataModule(Arithmetic(train_size=16, val_size=2), prompts_per_step=2, group_size=4, sampling=sampling)
    run = trainer(folder, [], max_steps=steps, limit_val_batches=0, log_every_n_steps=1)
    run.loggers = [CSVLogger(folder)]
    start = time.process_time()
    run.fit(module, datamodule=data)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 30], help="steps of a run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"`{shlex.join(['python', *sys.argv])}`: {machine(torch.device('cpu'))}\n")
    print("| steps of a run | at once, CPU s | by Lightning's `log`, CPU s | ratio |\n|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for steps in args.steps:
            turns = [
                [cpu_s(kind, steps, folder) for kind in (GRPOModule, LightningLog)] for _ in range(args.repeats + 1)
            ]
            ours, lightnings = zip(*turns[1:], strict=True)
            ratios = [theirs / own for own, theirs in turns[1:]]
            print(f"| {steps} | {spread(ours)} | {spread(lightnings)} | {spread(ratios)} |")


if __name__ == "__main__":
    main()
