"""What a rehearsal changes of the code that it runs: what repeats itself is run once, and copies are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithms.microbatch import Microbatch
from grpo_lightning.commands.plan.meter import PACKED, MemoryMeter
from grpo_lightning.functional import chunked_head
from grpo_lightning.rollout.engines import decoder
from grpo_lightning.speed import packed


def heaviest(cut: Callable[..., list[Microbatch]]) -> Callable[..., list[Microbatch]]:
    """Of the micro-batches of a pass only the heaviest: twice if it learns, to meet the gradients of the first."""

    def cut_to_one(*args: Any) -> list[Microbatch]:
        parts = cut(*args)
        most = max(parts, key=lambda part: (part.padded_tokens, len(part.rows)), default=None)
        return [most] * min(2 if torch.is_grad_enabled() else 1, len(parts)) if most is not None else []

    return cut_to_one


@contextmanager
def first_block_only() -> Iterator[None]:
    """Softmax passes over the first block of logits alone: the others take the same memory, and there are hundreds."""
    every = chunked_head.softmax_blocks
    chunked_head.softmax_blocks = lambda logits_CV: every(logits_CV)[:1]
    try:
        yield
    finally:
        chunked_head.softmax_blocks = every


@contextmanager
def counting_copies(meter: MemoryMeter) -> Iterator[None]:
    """Copies of weights to multiply by are the part ``packed weights``."""
    product_by_copy = packed.product_by_copy

    def counted(layers: Sequence[torch.nn.Linear]) -> Callable[[Tensor], Tensor]:
        with meter.counting_as(PACKED):
            return product_by_copy(layers)

    packed.product_by_copy = counted
    try:
        yield
    finally:
        packed.product_by_copy = product_by_copy


@contextmanager
def one_prefill() -> Iterator[None]:
    """All prompts run in one pass: their cache takes the same memory as that of several."""
    before = decoder.PREFILL_TOKENS
    decoder.PREFILL_TOKENS = 2**62
    try:
        yield
    finally:
        decoder.PREFILL_TOKENS = before
