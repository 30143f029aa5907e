"""Lower bounds on time, from the machine's measured matrix throughput and memory bandwidth.

With ``W`` the weights of all matrices except the embedding look-up (a tied head counts once, as the head), ``H`` those
of the head, ``F`` the throughput of matrix products and ``M`` the read bandwidth:

- rollout: prefill ``2 (W - H) * prompt tokens / F``, each prompt once; then, for every decoding step with ``R``
  remaining rows, the maximum of compute, ``(2 W R + attention) / F``, and reads, ``(bytes of W + cache of the rows) /
  M``.
- update: ``(6 (W - H) * (prompt tokens, each prompt once, + completion tokens) + 6 H * completion tokens +
  3 * attention) / F``, and for the optimizer 7 float32 passes over the trained weights, ``/ M``. A frozen matrix (LoRA)
  costs 4 instead of 6, as its own gradient is not computed.

Attention is ``4 * heads * head size * (tokens seen)`` per token and attention layer. Elementwise operations, kernel
launches, sampling and Python are not counted, so no implementation reaches the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from meters import now
from shapes import Shape


@dataclass(frozen=True)
class Rates:
    """Measured rates of the machine, per second.

    Args:
        flops: floating-point operations of a large matrix product.
        bytes: bytes read from memory.
    """

    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.flops / 1e9:.0f} GFLOP/s, {self.bytes / 1e9:.0f} GB/s"


def measure(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the best of several tries, with torch's current number of threads."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 1536
    square = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(square)
    flops = 2 * side**3 / _best(lambda: torch.mm(square, square, out=out), device)
    # A copy reads and writes, so it moves twice the bytes.
    source = torch.zeros((2**30 if cuda else 2**27) // dtype.itemsize, device=device, dtype=dtype)
    target = torch.zeros_like(source)
    moved = 2 * source.numel() * dtype.itemsize / _best(lambda: target.copy_(source), device)
    return Rates(flops, moved)


def _best(function: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    function()
    best = float("inf")
    for _ in range(tries):
        count, start, wall = 0, now(device), time.perf_counter()
        while time.perf_counter() - wall < 0.1 or not count:
            function()
            count += 1
        best = min(best, (now(device) - start) / count)
    return best


@dataclass(frozen=True)
class Work:
    """The sizes that enter the floors."""

    body: int
    head: int
    attention_layers: int
    attention_width: int
    cache_width: int

    @classmethod
    def of(cls, shape: Shape) -> Work:
        """Count the weights of the shape's matrices; norms are negligible."""
        dims = shape.dims
        width, ff, layers = dims["hidden_size"], dims["intermediate_size"], dims["num_hidden_layers"]
        kinds = dims.get("layer_types", ["full_attention"] * layers)
        head_size = width // dims["num_attention_heads"]
        cache = 2 * dims["num_key_value_heads"] * head_size
        attention = 2 * width * width + width * cache
        mixers = sum(attention if kind == "full_attention" else 4 * width * width for kind in kinds)
        return cls(
            body=mixers + layers * 3 * width * ff,
            head=width * dims["vocab_size"],
            attention_layers=kinds.count("full_attention"),
            attention_width=width,
            cache_width=cache,
        )

    def attention(self, seen: float) -> float:
        """Return the operations of attention; ``seen`` is the number of tokens attended to, summed over queries."""
        return 4.0 * self.attention_layers * self.attention_width * seen


def rollout_floor(shape: Shape, lengths: Sequence[int], prompts: Sequence[int], rates: Rates) -> float:
    """Return the floor of a rollout in seconds.

    Args:
        shape: the shape of the model and the step.
        lengths: completion tokens per row.
        prompts: prompt tokens per row; the rows of a group are adjacent.
        rates: the rates of the machine.
    """
    work, size = Work.of(shape), getattr(torch, shape.dtype).itemsize
    once = prompts[:: shape.group_size]
    seen = sum(length * (length + 1) / 2 for length in once)
    seconds = (2 * work.body * sum(once) + work.attention(seen)) / rates.flops
    for step in range(max(lengths)):
        context = [prompt + step for prompt, length in zip(prompts, lengths, strict=True) if length > step]
        compute = (2 * (work.body + work.head) * len(context) + work.attention(sum(context))) / rates.flops
        cache = work.attention_layers * work.cache_width * sum(context)
        seconds += max(compute, (work.body + work.head + cache) * size / rates.bytes)
    return seconds


def update_floor(shape: Shape, lengths: Sequence[int], prompts: Sequence[int], rates: Rates) -> float:
    """Return the floor of all optimizer steps on one rollout in seconds; for arguments see :func:`rollout_floor`."""
    work = Work.of(shape)
    once = prompts[:: shape.group_size]
    tokens = sum(once) + sum(lengths)
    seen = sum(length * (length + 1) / 2 for length in once)
    seen += sum(length * prompt + length * (length + 1) / 2 for length, prompt in zip(lengths, prompts, strict=True))
    factor = 6 if shape.lora is None else 4
    compute = factor * (work.body * tokens + work.head * sum(lengths)) + 3 * work.attention(seen)
    trained = work.body + work.head if shape.lora is None else 0
    return shape.updates * (compute / rates.flops + 7 * 4 * trained / rates.bytes)
