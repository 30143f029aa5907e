"""Peak memory per phase of SFT, GRPO, GRPO with refinement, and PPO with each critic, with LoRA.

    python benchmarks/memory.py                      # LFM2.5-1.2B's shape on CUDA, a 42 M one on the CPU
    python benchmarks/memory.py --device cpu --method GRPO "PPO separate"

The architecture is real and the weights are random, so nothing is downloaded and completions reach the token limit (a
random policy ends one about once in 30,000 tokens). Every method trains two iterations in a fresh process; in the
second one the optimizer state and the previous gradients exist. On CUDA the numbers are torch's `max_memory_allocated`,
weights included. On the CPU they are the phase's peak resident memory, minus that before the model was built.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meters import MIB, Peak, machine

if TYPE_CHECKING:
    import torch

METHODS: dict[str, dict[str, Any]] = {
    "SFT": {"class": "SFTModule"},
    "GRPO": {"class": "GRPOModule", "beta": 0.04},
    "GRPO + refinement": {"class": "GRPOModule", "beta": 0.04, "refinement": True},
    "PPO shared": {"class": "PPOModule", "beta": 0.04, "critic": "shared", "updates_per_rollout": 1},
    "PPO adapter": {"class": "PPOModule", "beta": 0.04, "critic": "adapter", "updates_per_rollout": 1},
    "PPO separate": {"class": "PPOModule", "beta": 0.04, "critic": "separate", "updates_per_rollout": 1},
}
DEFAULTS = {
    "cuda": {"shape": "lfm2.5-1.2b", "prompts": 8, "group": 8, "prompt_tokens": 256, "tokens": 512, "budget": 3072},
    "cpu": {"shape": "lfm2-42m", "prompts": 2, "group": 8, "prompt_tokens": 64, "tokens": 32, "budget": 384},
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(DEFAULTS), help="default: cuda if available, else cpu")
    parser.add_argument("--method", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shape", help="name of a shape in benchmarks/architectures.py")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--group", type=int)
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--tokens", type=int, help="tokens per completion")
    parser.add_argument("--budget", type=int, help="max_tokens_per_microbatch")
    parser.add_argument("--rows-at-once", type=int, help="rollout_rows_at_once (default: all)")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--worker", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device is None:
        # The parent must not import torch: on Linux, children inherit their parent's peak of resident memory.
        args.device = "cuda" if Path("/dev/nvidia0").exists() else "cpu"
    for key, value in DEFAULTS[args.device].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args


class PeakRecorder:
    """Records the peak memory of every phase, the maximum over its passes, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.peaks: dict[str, float] = {}
        self.meter = Peak(device, measuring=True)
        self.before = self.meter.held()

    def phase_started(self, name: str) -> None:
        self.meter.reset()

    def phase_ended(self, name: str) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0), self.meter.peak() - self.before)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train two iterations of ``args.worker`` in this process, on the model in ``args.weights``, or on a random one."""
    import lightning.pytorch as pl
    import torch
    from architectures import FixedLengths, build

    from grpo_lightning import algorithms
    from grpo_lightning.models import LoRAConfig, PolicyConfig
    from grpo_lightning.rollout import RolloutDataModule, SamplingParams, refinement
    from grpo_lightning.verifiers import MathVerifier

    options = dict(METHODS[args.worker])
    kind = getattr(algorithms, options.pop("class"))
    refined = options.pop("refinement", False)
    # Truncated completions are not refined by default; here all completions are truncated, so refine them.
    refinement.can_be_refined = lambda rollout: not rollout.verdict.correct
    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        module = kind(
            policy=PolicyConfig(
                path=args.weights or build(args.shape, Path(folder) / "model"),
                init="pretrained" if args.weights else "random", dtype="bfloat16",
                lora=LoRAConfig(r=args.rank, alpha=2 * args.rank), gradient_checkpointing=args.checkpointing,
            ),
            verifiers=[MathVerifier()], max_tokens_per_microbatch=args.budget, **options,
        )  # fmt: skip
        data = RolloutDataModule(
            FixedLengths(args.prompt_tokens, args.tokens),
            prompts_per_step=args.prompts * (args.group if args.worker == "SFT" else 1), group_size=args.group,
            sampling=SamplingParams(max_new_tokens=args.tokens), max_prompt_tokens=args.prompt_tokens,
            overlong="truncate-left", rollout_rows_at_once=args.rows_at_once, seed=0,
            refinement=refinement.RefinementConfig() if refined else None,
        )  # fmt: skip
        recorder = PeakRecorder(torch.device(args.device))
        module.phases.listeners.append(recorder)
        trainer = pl.Trainer(
            accelerator=args.device, devices=1, precision="bf16-mixed", max_steps=2, limit_val_batches=0, logger=False,
            num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        return {
            "peaks": recorder.peaks,
            "parameters": sum(p.numel() for p in module.policy.lm.parameters() if not p.requires_grad),
            "machine": machine(torch.device(args.device)),
        }


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    print("command ", shlex.join(["python", *sys.argv]))
    print(
        f"shape    {args.shape}, LoRA r={args.rank}, {args.prompts} prompts x {args.group} completions, "
        f"{args.prompt_tokens} + {args.tokens} tokens, micro-batches of {args.budget} tokens, "
        f"{args.rows_at_once or 'all'} rows at once, gradient checkpointing {'on' if args.checkpointing else 'off'}"
    )
    totals: dict[str, float] = {}
    phases = ["rollout", "reference", "value", "update"]
    for method in args.method:
        command = [sys.executable, *sys.argv, "--worker", method]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        if not totals:
            print(f"machine  {result['machine']}; {result['parameters'] / 1e6:.0f} M frozen parameters")
            print(f"{'GB':18} " + " ".join(f"{phase:>10}" for phase in (*phases, "peak")))
        totals[method] = max(result["peaks"].values())
        cells = [f"{result['peaks'][p] * MIB / 1e9:10.3f}" if p in result["peaks"] else f"{'-':>10}" for p in phases]
        print(f"{method:18} " + " ".join([*cells, f"{totals[method] * MIB / 1e9:10.3f}"]), flush=True)
    for method in totals:
        if method.startswith("PPO") and "GRPO" in totals:
            print(f"GRPO / {method}: {totals['GRPO'] / totals[method]:.1%}")


if __name__ == "__main__":
    main()
