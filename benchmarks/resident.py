"""Compare `grpo plan` with the peak resident memory of the process, and allocator settings with each other.

    python benchmarks/resident.py --model FOLDER --data GSM8K_FOLDER
    python benchmarks/resident.py --model FOLDER --data GSM8K_FOLDER --case "GRPO, full" --allocator glibc 64 1024 4096
    python benchmarks/resident.py --model FOLDER --data GSM8K_FOLDER --case "GRPO, full" --steps 50

Every case is one `grpo fit` on the CPU in a fresh process: float32 weights, GSM8K prompts. `peak` is its highest
resident memory, `late` that of the steps after the tenth minus that of the first ten. `outside` is what the process
holds before its first rollout besides the planned weights: the plan's `python`. `kept` is the rest of the peak as a
fraction of the planned tensors, minus 1: the plan's `allocator`. An allocator setting is `glibc` (its own), `default`
(what `grpo fit` sets), or the KiB from which blocks are mapped separately.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

MIB = 2**20
LORA = {"lora": {"r": 16, "alpha": 32}}
CASES: dict[str, dict[str, Any]] = {
    "GRPO, full": {"class_path": "GRPOModule", "beta": 0.04},
    "GRPO, LoRA": {"class_path": "GRPOModule", "beta": 0.04, "policy": LORA},
    "PPO, full, separate": {"class_path": "PPOModule", "critic": "separate", "updates_per_rollout": 1},
    "PPO, LoRA, adapter": {"class_path": "PPOModule", "critic": "adapter", "updates_per_rollout": 1, "policy": LORA},
    "PPO, full, shared": {"class_path": "PPOModule", "critic": "shared", "updates_per_rollout": 1},
    "SFT, full": {"class_path": "SFTModule"},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and test.jsonl of GSM8K")
    parser.add_argument("--init", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--allocator", nargs="*", default=["default"], help="default, glibc, or KiB")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="tokens per completion")
    parser.add_argument("--budget", type=int, default=2048, help="max_tokens_per_microbatch")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def config(args: argparse.Namespace, case: str, folder: Path) -> Path:
    """Write the config of a case."""
    options: dict[str, Any] = dict(CASES[case])
    class_path = options.pop("class_path")
    policy = {"path": args.model, "dtype": "float32", "init": args.init} | options.pop("policy", {})
    recorder = {"class_path": "step_memory.StepMemory", "init_args": {"file": str(folder / "steps.json")}}
    content = {
        "run_dir": str(folder / "run"),
        "trainer": {
            "accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": args.steps, "logger": False,
            "limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_checkpointing": False,
            "enable_progress_bar": False, "callbacks": [recorder],
        },
        "model": {
            "class_path": class_path,
            "init_args": {
                "policy": policy,
                "verifiers": [{"class_path": "MathVerifier"}],
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}},
                "max_tokens_per_microbatch": args.budget,
            } | options,
        },
        "health_check": {"prompts": 0},
        "export": {"enabled": False},
        "data": {
            "task": {"class_path": "GSM8K", "init_args": {"path": args.data, "val_size": 16}},
            "max_prompt_tokens": args.prompt_tokens, "overlong": "truncate-left",
            "prompts_per_step": args.prompts, "group_size": args.group, "val_batch_size": 1,
            "sampling": {"temperature": 1.0, "max_new_tokens": args.tokens},
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def worker(args: argparse.Namespace) -> None:
    """Train a case in this process, then plan it."""
    from grpo_lightning.__main__ import main as grpo
    from grpo_lightning.cli import allocator

    case, setting = args.worker
    if setting.isdigit():
        allocator.MMAP_THRESHOLD = int(setting) * 1024
    elif setting == "glibc":
        os.environ["MALLOC_TRIM_THRESHOLD_"] = "0"  # read by glibc at the start of a process only; our setting is off
    with tempfile.TemporaryDirectory() as folder:
        path = config(args, case, Path(folder))
        grpo(["fit", "--config", str(path)])
        before, *steps = json.loads((Path(folder) / "steps.json").read_text())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        result = {"before": before, "steps": steps, "user": usage.ru_utime, "sys": usage.ru_stime}
        print(json.dumps(result | {"faults": usage.ru_minflt, "plan": plan(path)}))


def plan(path: Path) -> dict[str, float]:
    """Return the planned peak with and without what is not tensors, and the planned weights before a step, in MiB."""
    from grpo_lightning.commands.plan.command import PROCESS
    from grpo_lightning.commands.plan.configured import planner_of

    planner, _ = planner_of(["--config", str(path)], None, None)
    worst = max(planner.phases(planner.settings), key=lambda phase: phase.total)
    still = ("optimizer", "gradients", "activations", "logits", "cache", "packed weights", "merge copy")
    loaded = sum(size for part, size in worst.parts.items() if part not in (*still, "optimizer scratch"))
    return {"held": PROCESS.added_to(worst).total / MIB, "tensors": worst.total / MIB, "loaded": loaded / MIB}


def main() -> None:
    args = parse_arguments()
    if args.worker:
        worker(args)
        return
    print("command ", shlex.join(["python", *sys.argv]))
    print(
        f"{'case':20} {'allocator':>9} {'plan':>6} {'peak':>6}  plan/peak-1 {'tensors':>7} {'kept':>7} "
        f"{'outside':>7} {'late':>5} {'user s':>7} {'sys s':>6} {'faults':>8}   (MiB)"
    )
    for case in args.case:
        for setting in args.allocator:
            command = [sys.executable, *sys.argv, "--worker", case, setting]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            print(row(case, setting, json.loads(done.stdout.splitlines()[-1])), flush=True)


def row(case: str, setting: str, result: dict[str, Any]) -> str:
    """Format what a worker printed."""
    planned, steps = result["plan"], result["steps"]
    peak, outside = max(result["before"], *steps), result["before"] - planned["loaded"]
    late = f"{max(steps[10:]) - max(steps[:10]):5.0f}" if len(steps) > 10 else f"{'-':>5}"
    share = (peak - outside) / planned["tensors"] - 1
    return (
        f"{case:20} {setting:>9} {planned['held']:6.0f} {peak:6.0f}  {planned['held'] / peak - 1:+10.1%} "
        f"{planned['tensors']:7.0f} {share:+7.1%} {outside:7.0f} {late} {result['user']:7.1f} {result['sys']:6.1f} "
        f"{result['faults']:8d}"
    )


if __name__ == "__main__":
    main()
