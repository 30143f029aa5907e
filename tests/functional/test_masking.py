from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_lightning.functional.masking import masked_max, masked_mean, masked_std, masked_sum

VALUES = torch.tensor([[1.0, 2.0, 6.0], [-3.0, -5.0, 7.0], [4.0, 4.0, 4.0]])
MASK = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
REDUCTIONS = [masked_sum, masked_mean, masked_max, masked_std]


@pytest.mark.parametrize(
    ("reduction", "rows", "whole"),
    [  # by hand; the third row is fully masked
        (masked_sum, [3.0, -8.0, 0.0], -5.0),
        (masked_mean, [1.5, -4.0, 0.0], -1.25),
        (masked_max, [2.0, -3.0, 0.0], 2.0),
        (masked_std, [math.sqrt(0.5), math.sqrt(2.0), 0.0], math.sqrt((2.25**2 + 3.25**2 + 1.75**2 + 3.75**2) / 3)),
    ],
)
def test_values_by_hand(reduction, rows, whole):
    torch.testing.assert_close(reduction(VALUES, MASK, dim=1), torch.tensor(rows))
    torch.testing.assert_close(reduction(VALUES, MASK), torch.tensor(whole))


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=12).filter(
        lambda pairs: sum(counts for _, counts in pairs) >= 2
    )
)
def test_equal_torch_on_the_selected_values(pairs):
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    mask = torch.tensor([counts for _, counts in pairs])
    selected = values[mask]
    expected = [selected.sum(), selected.mean(), selected.max(), selected.std()]
    torch.testing.assert_close([reduction(values, mask) for reduction in REDUCTIONS], expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_garbage_changes_neither_value_nor_gradient(reduction, garbage):
    def value_and_gradient(values: Tensor) -> tuple[Tensor, Tensor]:
        values = values.clone().requires_grad_()
        result = reduction(values, MASK, dim=1)
        result[:2].sum().backward()
        return result.detach(), values.grad

    clean = value_and_gradient(VALUES)
    dirty = value_and_gradient(torch.where(MASK, VALUES, garbage))
    for expected, got in zip(clean, dirty, strict=True):
        assert torch.equal(expected, got)
    assert not clean[1][~MASK].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_reduce_gives_zero(reduction):
    empty = torch.zeros(3, 0)
    assert reduction(empty, empty.bool()).item() == 0
    assert torch.equal(reduction(empty, empty.bool(), dim=1), torch.zeros(3))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masks_that_are_not_boolean_are_rejected(reduction):
    with pytest.raises(ValueError, match="boolean"):
        reduction(VALUES, MASK.float())
    with pytest.raises(ValueError, match=r"same shape: values \(3, 3\), mask \(3, 1\)"):
        reduction(VALUES, MASK[:, :1])
