"""Operations on fakes give what the same operations on real tensors give, but for the values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from grpo_lightning.commands.plan.fakes import tensors_in
from grpo_lightning.commands.plan.meter import REAL_ELEMENTS, MemoryMeter

attention = torch.nn.functional.scaled_dot_product_attention
REAL_ROWS = torch.tensor([2, 0])
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "same shape": lambda a, b: a + b,
    "broadcast": lambda a, b: a * b[0],
    "transposed": lambda a, b: a.t() * b.t(),
    "product": lambda a, b: a @ b.t(),
    "joined": lambda a, b: torch.cat([a, b, a], dim=1),
    "a number": lambda a, b: a / 2,
    "a truth": lambda a, b: torch.where(a > 0, a, b),
    "dtype": lambda a, b: a.to(torch.bfloat16).float(),
    "two results": lambda a, b: a.max(dim=0),
    "view": lambda a, b: a.view(4, 3)[1:, :2].unsqueeze(0),
    "parts": lambda a, b: a.split([1, 3], dim=1),
    "reshaped product": lambda a, b: torch.nn.functional.linear(a[None], b),
    "in place": lambda a, b: a.mul_(2).add_(b),
    "filled": lambda a, b: a.masked_fill_(a > 0, 1.0),
    "real rows": lambda a, b: (a[REAL_ROWS], a.index_select(0, REAL_ROWS), a[:, 1:].index_add(0, REAL_ROWS, b[:2, 1:])),
    "transposed in place": lambda a, b: a.clone().t_(),
    "attention": lambda a, b: attention(*(x[None, None] for x in (a, b, b))),
}  # fmt: skip


def layouts(tensors: list[Tensor]) -> list[Any]:
    """Shapes, strides, dtypes, and which tensors have the storage of the one before."""
    shared = [a.untyped_storage()._cdata == b.untyped_storage()._cdata for a, b in pairwise(tensors)]
    return [[(tuple(t.shape), t.stride(), t.dtype, t.storage_offset()) for t in tensors], shared]


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_the_layout_of_a_real_one_each_time(name: str) -> None:
    real = [torch.rand(3, 4), torch.rand(3, 4)]
    expected = layouts([*real, *tensors_in(OPERATIONS[name](*real))])
    with MemoryMeter():
        for _ in range(3):
            a, b = torch.rand(3, 4), torch.rand(3, 4)
            made = list(tensors_in(OPERATIONS[name](a, b)))
            assert all(isinstance(tensor, FakeTensor) for tensor in made)
            assert layouts([a, b, *made]) == expected


def test_numbers_that_are_equal_can_give_different_dtypes() -> None:
    with MemoryMeter():
        whole = torch.zeros(REAL_ELEMENTS + 1, dtype=torch.int64)
        assert isinstance(whole, FakeTensor)
        assert [(whole * number).dtype for number in (1, 1.0, True)] == [torch.int64, torch.float32, torch.int64]


def test_each_result_is_counted_until_it_is_freed() -> None:
    with MemoryMeter() as meter:
        a = torch.zeros(16, 16)
        sums = [a + a for _ in range(3)]
        assert meter.total == 4 * 16 * 16 * 4
        del sums[0]
        assert meter.total == 3 * 16 * 16 * 4
