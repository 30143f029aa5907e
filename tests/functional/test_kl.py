from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.functional import kl_divergence

ESTIMATORS = ["k1", "k2", "k3"]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [  # by hand, for pi = 1/2 and pi_ref = 1/4: r = 1/2
        ("k1", math.log(2)),
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 - 1 + math.log(2)),
    ],
)
def test_value_by_hand(estimator, expected):
    logprobs, ref_logprobs = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    torch.testing.assert_close(kl_divergence(logprobs, ref_logprobs, estimator), torch.tensor([expected]))


def exact_kl(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (policy.exp() * (policy - reference)).sum()


@pytest.fixture
def distributions():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    return policy.requires_grad_(), reference.log_softmax(0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_is_the_kl_divergence(distributions, estimator):
    policy, reference = distributions[0].log_softmax(0), distributions[1]
    expectation = (policy.exp() * kl_divergence(policy, reference, estimator)).sum()
    torch.testing.assert_close(expectation, exact_kl(policy, reference))


def test_expected_gradients_are_those_of_the_docstring(distributions):
    parameters, reference = distributions
    policy = parameters.log_softmax(0)

    def expected_gradient(estimator):
        loss = (policy.exp().detach() * kl_divergence(policy, reference, estimator)).sum()
        return torch.autograd.grad(loss, parameters, retain_graph=True)[0]

    forward_kl = torch.autograd.grad(exact_kl(policy, reference), parameters, retain_graph=True)[0]
    reverse_kl = torch.autograd.grad(exact_kl(reference, policy), parameters, retain_graph=True)[0]
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros_like(parameters))
    torch.testing.assert_close(expected_gradient("k2"), forward_kl)
    torch.testing.assert_close(expected_gradient("k3"), reverse_kl)


@given(st.floats(-15, 0), st.floats(-15, 0))
def test_k2_and_k3_are_never_negative_and_zero_for_equal_logprobs(logprob, ref_logprob):
    policy, reference = torch.tensor([logprob]), torch.tensor([ref_logprob])
    for estimator in ("k2", "k3"):
        assert kl_divergence(policy, reference, estimator).item() >= 0
        assert kl_divergence(policy, policy, estimator).item() == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, -1e30])
def test_masked_positions_are_zero_in_value_and_gradient(estimator, garbage):
    mask = torch.tensor([True, False, False])
    policy = torch.tensor([-1.0, garbage, -1.0], requires_grad=True)
    reference = torch.tensor([-2.0, -2.0, garbage])
    divergence = kl_divergence(policy, reference, estimator, mask)
    divergence.sum().backward()
    alone = torch.tensor([-1.0], requires_grad=True)
    kl_divergence(alone, reference[:1], estimator).sum().backward()
    assert torch.equal(divergence[1:], torch.zeros(2))
    assert torch.equal(policy.grad, torch.tensor([alone.grad.item(), 0.0, 0.0]))


def test_k3_is_clamped_before_it_overflows():
    policy = torch.tensor([-200.0, -1.0, -1.0], requires_grad=True)
    reference = torch.tensor([-1.0, -200.0, -3.0])
    divergence = kl_divergence(policy, reference)
    divergence.sum().backward()
    # by hand: exp(20) - 1 - 20 with no slope; 199 - 1 with the slope 1 of -log r; e^-2 - 1 + 2 with slope 1 - e^-2
    torch.testing.assert_close(divergence, torch.tensor([math.exp(20) - 21, 198.0, math.exp(-2) + 1]))
    torch.testing.assert_close(policy.grad, torch.tensor([0.0, 1.0, 1 - math.exp(-2)]))


def test_bad_arguments():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="estimator is 'k4', but must be one of 'k1', 'k2', 'k3'"):
        kl_divergence(zeros, zeros, "k4")
    with pytest.raises(ValueError, match="same shape"):
        kl_divergence(zeros, zeros[:1])
    with pytest.raises(ValueError, match="boolean"):
        kl_divergence(zeros, zeros, mask=torch.ones(2, 3))
