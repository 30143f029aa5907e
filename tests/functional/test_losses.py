from __future__ import annotations

import math

import pytest
import torch

from grpo_lightning.functional import (
    aggregate,
    cispo_objective,
    clipped_objective,
    masked_mean,
    masked_sum,
    sequence_ratio,
    shaped_objective,
    token_ratio,
)

NAN = math.nan

# -- equations --------------------------------------------------------------------------------------------------------


def test_ratios_by_hand():
    # Probabilities 0.5, 0.2 and 0.4 that were 0.25, 0.4 and 0.4: ratios 2, 1/2, 1; and one token from 0.1 to 0.8: 8.
    logprobs = torch.tensor([[0.5, 0.2, 0.4], [0.8, NAN, NAN]], dtype=torch.float64).log()
    old = torch.tensor([[0.25, 0.4, 0.4], [0.1, 1.0, NAN]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    expected = torch.tensor([[2.0, 0.5, 1.0], [8.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(token_ratio(logprobs, old, mask), expected)
    # Their geometric means: (2 * 1/2 * 1)^(1/3) = 1, of two tokens (2 * 1/2)^(1/2) = 1, and 8.
    expected = torch.tensor([[1.0, 1.0, 1.0], [8.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sequence_ratio(logprobs, old, mask), expected)
    # Without the middle token: sqrt(2 * 1).
    mask[0, 1] = False
    assert sequence_ratio(logprobs, old, mask)[0].tolist() == pytest.approx([math.sqrt(2), 1.0, math.sqrt(2)])


def test_objectives_by_hand():
    ratio = torch.tensor([[1.1, 1.5, 0.5, 1.5, 0.5, 3.0]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]], dtype=torch.float64)
    objective, clipped = clipped_objective(ratio, advantages, 0.1, 0.3, None)
    assert objective[0].tolist() == pytest.approx([2.2, 2.6, 1.0, -3.0, -1.8, -6.0])
    assert clipped[0].tolist() == [False, True, False, False, True, False]
    objective, clipped = clipped_objective(ratio, advantages, 0.1, 0.3, 2.5)
    assert objective[0].tolist() == pytest.approx([2.2, 2.6, 1.0, -3.0, -1.8, -5.0])
    assert clipped[0].tolist() == [False, True, False, False, True, True]
    logprobs = torch.full((1, 6), -0.5, dtype=torch.float64)
    objective, capped = cispo_objective(logprobs, ratio, advantages, 1.4)
    assert objective[0].tolist() == pytest.approx([-1.1, -1.4, -0.5, 1.4, 0.5, 1.4])
    assert capped[0].tolist() == [False, True, False, True, False, True]


def test_the_shaped_objective_by_hand():
    # p = 0.1 and 0.9 with a shaping of 0.1: 1/2 and 9/10; the slope in log p is p * 0.1 / (p + 0.1)^2.
    logprobs = torch.tensor([[0.1, 0.9]], dtype=torch.float64).log().requires_grad_()
    objective = shaped_objective(logprobs, torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    assert objective[0].tolist() == pytest.approx([1.0, 1.8])
    (gradient,) = torch.autograd.grad(objective.sum(), logprobs)
    assert gradient[0].tolist() == pytest.approx([2 * 0.01 / 0.04, 2 * 0.09 / 1.0])
    assert shaped_objective(logprobs, torch.ones(1, 2), 0.4)[0].tolist() == pytest.approx([0.2, 9 / 13])


# -- aggregation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [  # by hand, for the sequences (1, 3) and (5)
        ("grpo", (2 + 5) / 2),
        ("dr_grpo", 9 / (2 * 10)),
        ("bnpo", 9 / 3),
        ("dapo", 9 / 3),
    ],
)
def test_aggregate_by_hand(aggregation, expected):
    loss = torch.tensor([[1.0, 3.0], [5.0, NAN]])
    mask = torch.tensor([[True, True], [True, False]])
    got = aggregate(loss, mask, aggregation=aggregation, sequences=2, tokens=3, max_tokens=10)
    assert got.item() == pytest.approx(expected)


def test_aggregations_are_means_over_the_whole_step():
    generator = torch.Generator().manual_seed(0)
    loss = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 3, 0])[:, None]
    counts = {"sequences": 5, "tokens": mask.sum(), "max_tokens": 6}
    assert torch.equal(aggregate(loss, mask, aggregation="grpo", **counts), masked_mean(loss, mask, dim=1).mean())
    assert torch.equal(aggregate(loss, mask, aggregation="dapo", **counts), masked_mean(loss, mask))
    assert torch.equal(aggregate(loss, mask, aggregation="dr_grpo", **counts), masked_sum(loss, mask) / loss.numel())


def test_aggregate_bad_arguments():
    loss, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    good = {"aggregation": "grpo", "sequences": 2, "tokens": 6, "max_tokens": 3}
    with pytest.raises(ValueError, match="aggregation is 'mean'"):
        aggregate(loss, mask, **{**good, "aggregation": "mean"})
    for name in ("sequences", "tokens", "max_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be positive, but is 0"):
            aggregate(loss, mask, **{**good, name: 0})
    with pytest.raises(ValueError, match="same shape"):
        aggregate(loss, mask[:1], **good)
