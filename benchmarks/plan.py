"""Compare `grpo plan` with measured peaks, per phase.

    python benchmarks/plan.py
    python benchmarks/plan.py --device cuda --shape lfm2.5-1.2b --prompts 8 --group 8 --tokens 512 --prompt-tokens 256

Every case trains two iterations from random weights in a fresh process; the second one counts. On CUDA a phase's peak
is torch's `max_memory_allocated`. On the CPU it is the maximum number of bytes held by torch's allocator, summed over
every allocation and release that the profiler recorded: exact, and without the memory of libraries and Python.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from meters import machine

CASES = {
    "GRPO, full": {"class_path": "GRPOModule", "policy": {"dtype": "float32"}, "beta": 0.04},
    "GRPO, LoRA": {"class_path": "GRPOModule", "policy": {"dtype": "bfloat16", "lora": {"r": 16}}, "beta": 0.04},
    "GRPO, LoRA, checkpointing": {
        "class_path": "GRPOModule",
        "policy": {"dtype": "bfloat16", "lora": {"r": 16}, "gradient_checkpointing": True},
        "beta": 0.04,
    },
    "GRPO, QLoRA": {
        "class_path": "GRPOModule",
        "policy": {"dtype": "bfloat16", "lora": {"r": 16}, "quantization": "nf4"},
        "beta": 0.04,
    },
    "GRPO, QLoRA, checkpointing": {
        "class_path": "GRPOModule",
        "policy": {"dtype": "bfloat16", "lora": {"r": 16}, "quantization": "nf4", "gradient_checkpointing": True},
        "beta": 0.04,
    },
    "GRPO, full, mixed": {
        "class_path": "GRPOModule",
        "policy": {"dtype": "float32"},
        "beta": 0.04,
        "precision": "bf16-mixed",
    },
    "PPO, full, shared": {"class_path": "PPOModule", "policy": {"dtype": "float32"}, "critic": "shared"},
    "PPO, full, separate": {"class_path": "PPOModule", "policy": {"dtype": "float32"}, "critic": "separate"},
    "PPO, LoRA, adapter": {
        "class_path": "PPOModule",
        "policy": {"dtype": "bfloat16", "lora": {"r": 16}},
        "critic": "adapter",
    },
    "SFT, full": {"class_path": "SFTModule", "policy": {"dtype": "float32"}},
}
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}
TOLERANCE = {"cpu": 0.25, "cuda": 0.15}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", nargs="*", default=["llama-42m", "lfm2-42m"], help="in architectures.py")
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="tokens per completion")
    parser.add_argument("--rows", type=int, default=4, help="rows per micro-batch")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def config(args: argparse.Namespace, shape: str, case: str, folder: Path) -> Path:
    """Write a config of the case, with a model and a tokenizer next to it."""
    from architectures import build

    options: dict[str, Any] = dict(CASES[case])
    class_path = options.pop("class_path")
    policy = options.pop("policy") | {"path": build(shape, folder / "model"), "init": "random"}
    if "quantization" in policy:  # weights are quantised while loading
        from transformers import AutoConfig, AutoModelForCausalLM

        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(policy["path"])).save_pretrained(policy["path"])
        policy["init"] = "pretrained"
    precision = options.pop("precision", PRECISION[policy["dtype"]])
    content = {
        "trainer": {"accelerator": args.device, "devices": 1, "precision": precision},
        "model": {
            "class_path": class_path,
            "init_args": {
                "policy": policy,
                "verifiers": [{"class_path": "MathVerifier"}],
                "max_tokens_per_microbatch": args.rows * (args.prompt_tokens + args.tokens),
            } | options,
        },
        "data": {
            "task": {
                "class_path": "architectures.FixedLengths",
                "init_args": {"prompt_tokens": args.prompt_tokens, "solution_tokens": args.tokens},
            },
            "max_prompt_tokens": args.prompt_tokens, "overlong": "truncate-left",
            "prompts_per_step": args.prompts, "group_size": args.group,
            "sampling": {"temperature": 1.0, "max_new_tokens": args.tokens},
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def predicted(path: Path, memory: int) -> dict[str, int]:
    """Return the planned peak of each phase in bytes."""
    from grpo_lightning.commands.plan.configured import planner_of

    planner, _ = planner_of(["--config", str(path)], None, memory)
    return {phase.name: phase.total for phase in planner.phases(planner.settings)}


def measured(path: Path, device: str) -> dict[str, int]:
    """Train two iterations, and return the peak of each phase of the second one in bytes."""
    import lightning.pytorch as pl
    import torch

    from grpo_lightning.cli.grpo_cli import parse
    from grpo_lightning.commands.plan.configured import PlanCLI

    cli = parse(["--config", str(path)], PlanCLI)
    trainer = pl.Trainer(
        **yaml.safe_load(path.read_text())["trainer"], max_steps=2 * getattr(cli.model, "updates_per_rollout", 1),
        limit_val_batches=0, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(path.parent),
    )  # fmt: skip
    if device == "cuda":
        return _on_cuda(cli, trainer)
    names: list[str] = []

    class Mark:
        """Marks the phases in the profile."""

        def phase_started(self, name: str) -> None:
            names.append(name)
            self.range = torch.profiler.record_function(f"phase {name}")
            self.range.__enter__()

        def phase_ended(self, name: str) -> None:
            self.range.__exit__(None, None, None)

    cli.model.phases.listeners.append(Mark())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.fit(cli.model, datamodule=cli.datamodule)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    spans = {
        name: max(
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in events
            if event.name() == f"phase {name}"
        )
        for name in names
    }
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peaks, held = dict.fromkeys(spans, 0), 0
    for moment, change in changes:
        held += change
        for name, (start, end) in spans.items():
            if start <= moment <= end:
                peaks[name] = max(peaks[name], held)
    return peaks


def _on_cuda(cli: Any, trainer: Any) -> dict[str, int]:
    import torch

    peaks: dict[str, int] = {}

    class PeakRecorder:
        def phase_started(self, name: str) -> None:
            torch.cuda.reset_peak_memory_stats()

        def phase_ended(self, name: str) -> None:
            # The second iteration overwrites the peaks of the first.
            peaks[name] = torch.cuda.max_memory_allocated()

    cli.model.phases.listeners.append(PeakRecorder())
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return peaks


def worker(args: argparse.Namespace) -> None:
    import torch

    shape, case = args.worker.split("/")
    with tempfile.TemporaryDirectory() as folder:
        path = config(args, shape, case, Path(folder))
        memory = torch.cuda.get_device_properties(0).total_memory if args.device == "cuda" else 1
        plan, peaks = predicted(path, memory), measured(path, args.device)
    print(json.dumps({"plan": plan, "peaks": peaks, "machine": machine(torch.device(args.device))}))


def main() -> None:
    args = parse_arguments()
    if args.worker:
        worker(args)
        return
    print("command ", shlex.join(["python", *sys.argv]))
    misses, shown = 0, False
    for shape in args.shape:
        for case in args.case:
            command = [sys.executable, *sys.argv, "--worker", f"{shape}/{case}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            if not shown:
                print("machine ", result["machine"])
                print(f"{'model':12} {'case':26} {'phase':10} {'plan':>10} {'measured':>10}  plan / measured - 1")
                shown = True
            for phase, size in result["plan"].items():
                if phase not in result["peaks"]:
                    continue
                peak = result["peaks"][phase]
                error = size / peak - 1
                missed = abs(error) > TOLERANCE[args.device]
                misses += missed
                print(
                    f"{shape:12} {case:26} {phase:10} {size / 2**20:6.0f} MiB {peak / 2**20:6.0f} MiB  {error:+.1%}"
                    f"{'  MISSED' if missed else ''}",
                    flush=True,
                )
    print(f"{misses} phases off by more than {TOLERANCE[args.device]:.0%}")
    raise SystemExit(misses > 0)


if __name__ == "__main__":
    main()
