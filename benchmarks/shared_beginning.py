"""Prefill of prompts that begin alike, with the shortcut ``shared_beginnings`` and without it, in alternation.

    python benchmarks/shared_beginning.py
    python benchmarks/shared_beginning.py --model HuggingFaceTB/SmolLM2-135M-Instruct --dtype bfloat16

Prints the median CPU seconds (on a GPU: seconds) for the first token of ``--prompts`` prompts, by the share of their
tokens that is the same. Without ``--model`` the policy is the 2.5 M Llama of vs_trl.py, with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from meters import machine, now
from shapes import SHAPES, build, smoke

from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.speed.shared_beginning import SharedBeginnings


def prefill(policy: Policy, prompts: list[list[int]]) -> float:
    """Return the seconds that the first token of each prompt takes."""
    engine = InProcessEngine()
    engine.start(policy, max(map(len, prompts)) + 1)
    start = now(policy.device)
    engine.generate([Request(ids, row) for row, ids in enumerate(prompts)], SamplingParams(max_new_tokens=1))
    return now(policy.device) - start


def measure(args: argparse.Namespace, path: str) -> None:
    """Print the table for one model."""
    without = [], [SharedBeginnings.name]
    used, plain = (Policy(PolicyConfig(path, dtype=args.dtype, without=names)).to(args.device) for names in without)
    draw = torch.Generator().manual_seed(1)
    ids_NP = torch.randint(10, used.lm.config.vocab_size, (args.prompts, args.tokens), generator=draw)
    print("| shared | with | without | ratio |\n|---:|---:|---:|---:|")
    for share in (0.0, 0.25, 0.5, 0.75):
        prompts_NP = ids_NP.clone()
        prompts_NP[:, : int(share * args.tokens)] = ids_NP[0, : int(share * args.tokens)]
        pairs = [[prefill(policy, prompts_NP.tolist()) for policy in (used, plain)] for _ in range(1 + args.repeats)]
        own, other = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
        print(f"| {share:.0%} | {own:.2f} s | {other:.2f} s | {other / own:.2f} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name or folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="use the small sizes of a test")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine(torch.device(args.device))}; {args.prompts} prompts of {args.tokens} tokens, {args.dtype}\n")
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            build(smoke(SHAPES["tiny"]) if args.smoke else SHAPES["tiny"], Path(folder))
        measure(args, args.model or folder)


if __name__ == "__main__":
    main()
