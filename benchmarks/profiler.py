"""The cost of VRAMProfiler: the same training run without it and with it, alternating.

    python benchmarks/profiler.py

Every run is a separate process: without, with, without, with, ... Time per training step is CPU seconds on the CPU and
wall time on CUDA, without the first steps. The difference of the medians is blurred by other work on the machine, so
the fraction of the time spent inside the profiler's hooks is shown as well.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from meters import machine

ROOT = Path(__file__).parents[1]
HOOKS = ("phase_started", "phase_ended", "on_train_batch_start", "on_train_batch_end")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3, help="first steps, not counted")
    parser.add_argument("--repeats", type=int, default=4, help="runs per variant")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=["without", "with"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train the quickstart's decoder once in this process."""
    import lightning.pytorch as pl
    import torch

    from grpo_lightning.algorithms import GRPOModule
    from grpo_lightning.callbacks import VRAMProfiler
    from grpo_lightning.models import PolicyConfig
    from grpo_lightning.rollout import RolloutDataModule, SamplingParams
    from grpo_lightning.tasks import Arithmetic
    from grpo_lightning.verifiers import MathVerifier

    clock = time.perf_counter if args.accelerator == "cuda" else time.process_time
    inside = [0.0]

    def timed(hook: Any) -> Any:
        def run(*values: Any) -> Any:
            started = clock()
            result = hook(*values)
            inside[0] += clock() - started
            return result

        return run

    class Clock(pl.Callback):
        """Records the time at the end of every step."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []

        def on_train_batch_end(self, *_: Any) -> None:
            if args.accelerator == "cuda":
                torch.cuda.synchronize()
            self.ends.append((clock(), inside[0]))

    torch.set_num_threads(args.threads)
    pl.seed_everything(0, verbose=False)
    ends, callbacks = Clock(), []
    if args.worker == "with":
        profiler: Any = VRAMProfiler()
        for name in HOOKS:
            setattr(profiler, name, timed(getattr(profiler, name)))
        callbacks.append(profiler)
    module = GRPOModule(
        policy=PolicyConfig(path=str(ROOT / "configs/tiny_decoder"), init="random"),
        verifiers=[MathVerifier()],
        max_tokens_per_microbatch=4096,
    )
    data = RolloutDataModule(
        Arithmetic(), args.prompts, args.group_size, SamplingParams(max_new_tokens=40), val_batch_size=1
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            default_root_dir=folder, max_steps=args.steps, accelerator=args.accelerator, devices=1, logger=False,
            callbacks=[*callbacks, ends], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, limit_val_batches=0, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    (first, before), (last, after) = ends.ends[args.warm_up - 1], ends.ends[-1]
    return {
        "seconds": (last - first) / (args.steps - args.warm_up),
        "inside": (after - before) / (last - first),
        "machine": machine(torch.device(args.accelerator)),
    }


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    results: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for _ in range(args.repeats):
        for variant, runs in results.items():
            command = [sys.executable, *sys.argv, "--worker", variant]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.splitlines()[-1]))
    print("command ", shlex.join(["python", *sys.argv]))
    print("machine ", results["with"][0]["machine"])
    medians = {}
    for variant, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        medians[variant] = statistics.median(seconds)
        print(
            f"{variant:8} {medians[variant]:.4f} s per step ({min(seconds):.4f} to {max(seconds):.4f}), "
            f"{len(runs)} runs"
        )
    shares = [run["inside"] for run in results["with"]]
    print(f"difference of the medians  {medians['with'] / medians['without'] - 1:+.2%}")
    print(
        f"inside the hooks           {statistics.median(shares):.3%} of a step ({min(shares):.3%} to {max(shares):.3%})"
    )


if __name__ == "__main__":
    main()
