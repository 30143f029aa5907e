from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.functional import masked_sequence_weights, token_ratio, truncated_weights

NAN = math.nan
BOTH = [truncated_weights, masked_sequence_weights]


def test_weights_by_hand() -> None:
    # Probabilities 0.5, 0.2 and 0.4 that were drawn with 0.25, 0.4 and 0.4: ratios 2, 1/2, 1; 0.8 drawn with 0.1: 8.
    logprobs = torch.tensor([[0.5, 0.2, 0.4], [0.8, NAN, NAN]], dtype=torch.float64).log()
    sampler = torch.tensor([[0.25, 0.4, 0.4], [0.1, 1.0, NAN]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights, cut = truncated_weights(logprobs, sampler, mask, 1.5)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 0.5, 1.0], [1.5, 1.0, 1.0]], dtype=torch.float64))
    assert cut.tolist() == [[True, False, False], [True, False, False]]
    # Products: 2 * 1/2 * 1 = 1, which stays, and 8, which goes.
    weights, cut = masked_sequence_weights(logprobs, sampler, mask, 1.5)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64))
    assert cut.tolist() == [[False, False, False], [True, False, False]]
    # Without the middle token 2 * 1.
    mask[0, 1] = False
    weights, _ = masked_sequence_weights(logprobs, sampler, mask, 2.5)
    torch.testing.assert_close(weights[0], torch.tensor([2.0, 1.0, 2.0], dtype=torch.float64))


def test_without_a_cap_the_weighted_gradient_is_that_of_the_policys_own_samples() -> None:
    """Over all sequences of two tokens: ``E_mu[ w A grad log pi ] = grad E_pi[ A ]``, with the weight of a sequence."""
    generator = torch.Generator().manual_seed(0)
    logits, sampler_logits = torch.randn(2, 2, 5, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    advantages = torch.randn(25, dtype=torch.float64, generator=generator)

    def of_pairs(distributions: torch.Tensor) -> torch.Tensor:
        return torch.stack([distributions.log_softmax(-1)[place, pairs[:, place]] for place in (0, 1)], dim=1)

    logprobs, sampler = of_pairs(logits), of_pairs(sampler_logits)
    weights, _ = masked_sequence_weights(logprobs, sampler, torch.ones(25, 2, dtype=torch.bool), math.inf)
    corrected = (sampler.sum(1).exp() * (weights * logprobs).sum(1) * advantages).sum()
    expected = (logprobs.sum(1).exp() * advantages).sum()
    torch.testing.assert_close(
        torch.autograd.grad(corrected, logits, retain_graph=True), torch.autograd.grad(expected, logits)
    )


@given(st.data())
def test_weights_against_other_formulas(data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logprobs, sampler = -3 * torch.rand(2, 3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    cap = data.draw(st.floats(0.1, 5))
    ratio = token_ratio(logprobs, sampler, mask)
    weights, cut = truncated_weights(logprobs, sampler, mask, cap)
    torch.testing.assert_close(weights[mask], torch.minimum(ratio, torch.tensor(cap))[mask])
    assert torch.equal(cut & mask, (weights == cap) & (ratio != cap) & mask)
    product = ratio.prod(1, keepdim=True).expand(3, 4)
    weights, cut = masked_sequence_weights(logprobs, sampler, mask, cap)
    torch.testing.assert_close(weights, torch.where(mask, product * (product <= cap), 1.0))
    assert torch.equal(cut, mask & (product > cap))


@pytest.mark.parametrize("weigh", BOTH)
def test_weights_are_constants_and_garbage_in_masked_places_changes_none(weigh: Any) -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    sampler, mask = torch.tensor([[-1.2, -1.8, -3.0]]), torch.tensor([[True, True, False]])
    weights, cut = weigh(logprobs, sampler, mask, 2.0)
    assert not weights.requires_grad
    for garbage in (NAN, math.inf, -math.inf, 1e30):
        dirty, found = weigh(logprobs.detach().where(mask, garbage), sampler.where(mask, -garbage), mask, 2.0)
        assert torch.equal(dirty, weights)
        assert torch.equal(found, cut)


@pytest.mark.parametrize("weigh", BOTH)
def test_a_token_that_the_sampler_hardly_gives_has_a_finite_weight(weigh: Any) -> None:
    weights, _ = weigh(torch.zeros(1, 2), torch.full((1, 2), -1e4), torch.ones(1, 2, dtype=torch.bool), math.inf)
    assert weights.isfinite().all()
