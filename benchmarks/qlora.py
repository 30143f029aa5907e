"""QLoRA's rollouts: with the adapter beside 4-bit weights, or with both merged into weights that are unpacked for it.

    python benchmarks/qlora.py --model HuggingFaceTB/SmolLM2-135M-Instruct

For each way, the gap between sampling and training (as in ``sampler_gap.py``), the seconds of the rollout and of the
pass without gradient, and the MiB of weights that lie on the device during the rollout. LoRA over weights that are not
quantised is the control.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from meters import MIB, machine
from sampler_gap import load_policy, measure, with_noise
from shapes import SHAPES, build, smoke
from torch import nn

from grpo_lightning.models import LoRAConfig, Policy
from grpo_lightning.models.quantised import is_packed, unpacked

COLUMNS = "| weights | rollout | mean gap | max gap | rollout, s | pass, s | weights, MiB |"

Way = Callable[[Policy], AbstractContextManager[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name or folder; default: random weights of the shape")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few tokens")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print("python", shlex.join(sys.argv))
    print(machine(device), flush=True)
    print(f"\n{COLUMNS}\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model
        if path is None:
            shape = SHAPES[arguments.shape]
            if arguments.smoke:  # with columns that bitsandbytes unpacks on a CPU
                shape = smoke(shape)
                shape = replace(shape, dims=shape.dims | {"hidden_size": 64, "intermediate_size": 64})
            build(shape, Path(folder))
            path = folder
        size = (2, 8) if arguments.smoke else (arguments.prompts, arguments.tokens)
        for dtype in arguments.dtype:
            load = partial(load_policy, path, device, dtype=dtype, lora=LoRAConfig())
            _line(f"{dtype}, LoRA", "merged", with_noise(load()), size, nullcontext)
            policy = with_noise(load(quantization="nf4"))
            _line(f"nf4, {dtype}, LoRA", "adapter beside the weights", policy, size, nullcontext)
            _line(f"nf4, {dtype}, LoRA", "unpacked and merged", policy, size, unpacked_for)


def _line(weights: str, rollout: str, policy: Policy, size: tuple[int, int], way: Way) -> None:
    held = []

    @contextmanager
    def rollout_weights() -> Iterator[None]:
        with torch.no_grad(), way(policy):
            held.append(sum(p.numel() * p.element_size() for p in policy.lm.parameters()) / MIB)
            yield

    mean, largest, _, seconds, forward = measure(*size, policy, during_rollout=rollout_weights)
    print(
        f"| {weights} | {rollout} | {mean:.2g} | {largest:.2g} | {seconds:.1f} | {forward:.1f} | {held[0]:.0f} |",
        flush=True,
    )


@contextmanager
def unpacked_for(policy: Policy) -> Iterator[None]:
    """What the library does not do: inside, plain layers instead of 4-bit ones, into which the adapter is merged.

    The 4-bit weights stay on the device; what the merge keeps to take the adapter out again does not count.
    """
    layers = [layer for layer in policy.lm.modules() if hasattr(layer, "merged_adapters") and is_packed(layer)]
    packed = [layer.base_layer for layer in layers]
    for layer, base in zip(layers, packed, strict=True):
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(unpacked(base), requires_grad=False), base.bias
        layer.base_layer = plain
    policy.lm.kept = nn.ParameterList([base.weight for base in packed])
    try:
        yield
    finally:
        del policy.lm.kept
        policy.merge.pristine.clear()
        for layer, base in zip(layers, packed, strict=True):
            layer.base_layer = base


if __name__ == "__main__":
    main()
