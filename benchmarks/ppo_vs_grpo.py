"""Time of a PPO step against a GRPO step on the same rollouts, by phase.

    python benchmarks/ppo_vs_grpo.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data openai/gsm8k

Both train a LoRA adapter on GSM8K rows; PPO runs with a shared and with an adapter critic. Each turn is a separate
process, which makes a step to warm up and then the steps that count; the algorithms alternate. The learning rate is so
small that the model stays what it is, so all algorithms sample the same completions. With ``signal`` the reward is the
share of vowels, which differs within every group; without it every reward is 0. Time is process time on the CPU and
wall time on CUDA; validation is off.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

from meters import machine, now

TINY_LR = 1e-9
ALGORITHMS: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "PPO shared": {"critic": "shared"},
    "PPO adapter": {"critic": "adapter"},
}
CASES: dict[str, tuple[float, bool]] = {
    "signal, beta 0": (0.0, True),
    "signal, beta 0.04": (0.04, True),
    "no signal, beta 0": (0.0, False),
}
"""The weight of the KL, and whether rewards differ."""
PHASES = ("rollout", "reference", "value", "update", "step")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of the policy")
    parser.add_argument("--data", default="openai/gsm8k", help="folder or hub name of GSM8K")
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated (default: all)")
    parser.add_argument("--prompts", type=int, default=2, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--cap", type=int, default=64, help="maximum tokens per completion")
    parser.add_argument("--lora", type=int, default=16, help="rank of the adapter")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the weights")
    parser.add_argument("--updates", type=int, help="updates_per_rollout of PPO (default: its own)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps per turn that do not count")
    parser.add_argument("--steps", type=int, default=2, help="steps per turn that count")
    parser.add_argument("--repeats", type=int, default=2, help="turns per algorithm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turn", choices=ALGORITHMS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def vowels(sample: Any) -> float:
    """Return the share of vowels in a completion."""
    return sum(character in "aeiou" for character in sample.completion) / max(1, len(sample.completion))


def nothing(sample: Any) -> float:
    """Return 0."""
    return 0.0


def run_turn(args: argparse.Namespace) -> list[dict[str, float]]:
    """Return the seconds of each phase, for each step that counts, and a number that identifies its rollouts."""
    import lightning.pytorch as pl
    import torch

    from grpo_lightning.algorithms import GRPOModule, PPOModule
    from grpo_lightning.models import LoRAConfig, PolicyConfig
    from grpo_lightning.rollout import RolloutDataModule, SamplingParams
    from grpo_lightning.tasks import GSM8K
    from grpo_lightning.verifiers import FunctionVerifier

    class Clock(pl.Callback):
        """Measures the phases of each step."""

        def __init__(self) -> None:
            self.started: dict[str, float] = {}
            self.seconds: list[dict[str, float]] = [{}]

        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.device = pl_module.device
            pl_module.phases.listeners.append(self)

        def phase_started(self, name: str) -> None:
            self.started[name] = now(self.device)

        def phase_ended(self, name: str) -> None:
            self.seconds[-1][name] = self.seconds[-1].get(name, 0.0) + now(self.device) - self.started[name]

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            self.seconds[-1]["step"] = now(self.device) - self.started["rollout"]
            self.seconds[-1]["rollouts"] = float(batch.tokens.ids_NL.sum())
            self.seconds.append({})

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(args.threads)
    beta, has_signal = CASES[args.case[-1]]
    options = dict(ALGORITHMS[args.turn])
    if options and args.updates is not None:
        options["updates_per_rollout"] = args.updates
    lora = LoRAConfig(r=args.lora, alpha=2 * args.lora)
    module = (PPOModule if options else GRPOModule)(
        policy=PolicyConfig(path=args.model, dtype=args.dtype, lora=lora),
        verifiers=[FunctionVerifier(vowels if has_signal else nothing)],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=TINY_LR, weight_decay=0.0, fused=True),
        beta=beta,
        **options,
    )
    data = RolloutDataModule(
        GSM8K(args.data, val_size=1), prompts_per_step=args.prompts, group_size=args.group_size, seed=1,
        sampling=SamplingParams(max_new_tokens=args.cap),
    )  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            default_root_dir=folder, max_epochs=1, limit_train_batches=args.warm_up + args.steps,
            accelerator=args.device, devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[clock],
        ).fit(module, datamodule=data)  # fmt: skip
    return clock.seconds[args.warm_up : args.warm_up + args.steps]


def compare(case: str, args: argparse.Namespace) -> None:
    """Measure one case, and print its table."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in ALGORITHMS}
    for _ in range(args.repeats):
        for name in ALGORITHMS:
            # The last case is the one that a turn takes.
            command = [sys.executable, *sys.argv, "--case", case, "--turn", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
            steps[name] += json.loads(done.stdout.splitlines()[-1])
            print(f"{case}: {name}: {steps[name][-1]['step']:.2f} s", file=sys.stderr, flush=True)
    same = {tuple(step["rollouts"] for step in found) for found in steps.values()}
    assert len(same) == 1, "the algorithms did not learn from the same rollouts"
    print(f"\n{case}\n{'seconds per step':<16}" + "".join(f"{phase:>11}" for phase in PHASES) + "  step / GRPO's")
    medians = {
        name: {phase: statistics.median(step.get(phase, 0.0) for step in found) for phase in PHASES}
        for name, found in steps.items()
    }
    for name, seconds in medians.items():
        row = "".join(f"{seconds[phase]:11.2f}" for phase in PHASES)
        print(f"{name:<16}{row}{seconds['step'] / medians['GRPO']['step']:16.2f}", flush=True)


def main() -> None:
    args = parse_arguments()
    if args.turn:
        print(json.dumps(run_turn(args)))
        return
    import torch

    torch.set_num_threads(args.threads)
    print(f"{shlex.join(['python', *sys.argv])}\n{machine(torch.device(args.device))}")
    for case in args.case or CASES:
        compare(case, args)


if __name__ == "__main__":
    main()
