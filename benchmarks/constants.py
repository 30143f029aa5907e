"""The measurements behind the constants that control shortcuts and micro-batches.

    python benchmarks/constants.py packing | passes | copies | joins [--smoke]

Each prints a table of CPU seconds on one thread (with ``--device cuda``: seconds until the GPU has finished).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from meters import now
from shapes import SHAPES, Shape, build, smoke
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.commands.plan.policy import WeightlessPolicy, watch
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines import in_process
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.speed import packed, passes
from grpo_lightning.types import Completion


def seconds(run: Callable[[], Any], repeats: int, device: torch.device | None = None) -> float:
    """Return the median time of some runs, after one to warm up."""
    device = device or torch.device("cpu")
    run()
    times = []
    for _ in range(repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return statistics.median(times)


def packing(args: argparse.Namespace) -> None:
    """Measure the constants of ``packed``: a layer's time over that of a copy, transposed or packed for some rows."""
    sizes = (64, 128) if args.smoke else (128, 256, 512, 768, 1024, 2048)
    packed.MIN_PACKED_ELEMENTS = 0
    print("time of the layer / time by the copy; rows multiplied: 1, 4, 16, 48")
    for dtype, size in itertools.product((torch.float32, torch.bfloat16), sizes):
        if not packed.has_operators(dtype):
            continue
        layer = nn.Linear(size, size, bias=False, dtype=dtype).requires_grad_(False)
        layouts = {f"layout for {rows:2} rows": (rows, 0) for rows in (4, 16, 64)}
        if dtype is torch.float32:
            layouts["transposed"] = (16, 2**62)
        for layout, (packed_for, largest) in layouts.items():
            packed.PACK_ROWS, packed.MAX_TRANSPOSED_ELEMENTS = packed_for, largest
            apply, ratios = packed.linear(layer, pack=True), []
            for rows in (1, 4, 16, 48):
                inner, times = torch.randn(rows, size, dtype=dtype), 2 if args.smoke else max(20, 2**25 // size**2)
                plain, own = (
                    seconds(lambda run=run, inner=inner, times=times: [run(inner) for _ in range(times)], args.repeats)
                    for run in (layer, apply)
                )
                ratios.append(f"{plain / own:5.2f}")
            print(f"{size} x {size}, {str(dtype)[6:]}, {layout}: {' '.join(ratios)}")


def passes_(args: argparse.Namespace) -> None:
    """Measure ``passes._CALL_WEIGHTS``, ``_WEIGHT_TOKENS``, ``SMALL_PASS``, ``_PASS_TOKENS``; ``microbatch._ENOUGH``.

    A forward and backward pass of ``n`` tokens takes ``a + b n``: its overhead is ``a / b`` tokens.
    """
    device = torch.device(args.device)
    lengths = (16, 32) if args.smoke else (16, 32, 64, 128, 256, 512)
    if device.type == "cuda":
        lengths = (512, 1024, 2048, 4096, 8192)
    print(f"passes of {lengths} tokens")
    for size in (64,) if args.smoke else (192, 384, 768, 1536):
        torch.manual_seed(0)
        heads = {"num_attention_heads": size // 64, "num_key_value_heads": max(1, size // 192)}
        config = LlamaConfig(vocab_size=64, hidden_size=size, intermediate_size=3 * size, num_hidden_layers=4, **heads)
        lm = AutoModelForCausalLM.from_config(config).to(device)
        decoder = lm.get_decoder()

        def run(length: int, lm: Any = decoder, decoder: nn.Module = decoder) -> None:
            ids = torch.zeros(max(1, length // 64), min(length, 64), dtype=torch.long, device=device)
            decoder(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()

        times = [seconds(lambda length=length, run=run: run(length), args.repeats, device) for length in lengths]
        columns = torch.tensor([[1.0, length] for length in lengths], dtype=torch.float64)
        # Weighted, so that relative errors are minimised.
        weights = 1 / torch.tensor(times, dtype=torch.float64)[:, None]
        fit = torch.linalg.lstsq(columns * weights, torch.ones(len(times), 1, dtype=torch.float64)).solution
        overhead, count = float(fit[0] / fit[1]), sum(p.numel() for p in decoder.parameters())
        per_token = " ".join(f"{1e6 * time / length:.0f}" for time, length in zip(times, lengths, strict=True))
        used = passes.pass_overhead(decoder)
        print(
            f"{count / 1e6:6.1f} M weights: {overhead:5.0f} tokens, used {used}; us per token at {lengths}: {per_token}"
        )


def copies(args: argparse.Namespace) -> None:
    """Measure ``microbatch._COPIED_SHARE``: bytes kept for the backward pass, per computed and per forked token."""
    for name in ("tiny", "small"):
        shape = smoke(SHAPES[name]) if args.smoke else SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            build(shape, Path(folder))
            policy = WeightlessPolicy(PolicyConfig(path=folder), with_reference=False, on_cuda=False)
        watch(nn.ModuleDict({"policy": policy}), policy.meter)

        def kept(prompt: int, rows: int, policy: WeightlessPolicy = policy) -> int:
            tokens = token_rows([[0] * prompt] * rows, [[row] + [0] * 7 for row in range(rows)], pad=0)
            (microbatch,) = microbatches(tokens, torch.arange(rows), 10**6, overhead=1)
            assert (microbatch.tokens.sharing is not None) == (rows > 1)
            with policy.meter:
                before = sum(policy.meter.live.values())
                logprobs = policy.logprobs(microbatch.tokens)
                after = sum(policy.meter.live.values())
                del logprobs
            return after - before

        # Difference made by 256 more prompt tokens: computed once, and computed once and forked 8 times.
        run, forked = ((kept(320, rows) - kept(64, rows)) / 256 for rows in (1, 8))
        copied = (forked - run) / 8
        print(f"{shape.name}: {run:.0f} bytes per token that runs, {copied:.0f} per copy: {run / copied:.1f} times")


def joins(args: argparse.Namespace) -> None:
    """Measure ``in_process.MIN_JOIN_FRACTION`` and ``MAX_CACHE_GROWTH``: every fourth row gets another turn."""
    for name, feedback in (("tiny", 4), ("tiny", 64), ("small", 4), ("small", 64)):
        shape = smoke(SHAPES[name]) if args.smoke else SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            build(shape, Path(folder))
            policy = Policy(PolicyConfig(path=folder))
        for fraction in (0.0, 0.1, 0.3):
            times = []
            for growth in (0.0, 1.25, 2.0):
                in_process.MIN_JOIN_FRACTION, in_process.MAX_CACHE_GROWTH = fraction, growth
                times.append(seconds(partial(rollout, policy, shape, feedback), args.repeats))
            shown = " ".join(f"{time:6.2f}" for time in times)
            print(f"{name}, turns of {feedback:2}, fraction {fraction}: {shown} s at growth 0 (never), 1.25, 2")


def rollout(policy: Policy, shape: Shape, feedback: int) -> None:
    """Sample the completions of a step; every fourth is followed by ``feedback`` tokens and another completion."""
    requests = [Request([1, *range(5, 5 + 32 + row // 8)], row) for row in range(shape.rows)]

    def follow(rows: list[int], done: list[Completion]) -> list[Request]:
        return [
            Request(requests[row].prompt + completion.token_ids + [9] * feedback, row + 999)
            for row, completion in zip(rows, done, strict=True)
            if row < len(requests) and row % 4 == 0
        ]

    engine = InProcessEngine()
    engine.start(policy, 10 * shape.cap)
    engine.generate(requests, SamplingParams(max_new_tokens=shape.cap), follow)


if __name__ == "__main__":
    subjects = {"packing": packing, "passes": passes_, "copies": copies, "joins": joins}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=subjects)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="use the small sizes of a test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    subjects[args.subject](args)
