"""SAPO, GMPO, DPPO and GSPO-token: gradients against autograd of the plain form, and against a second formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo_lightning.functional import binary_divergence
from grpo_lightning.objectives import DPPO, GMPO, GSPO, SAPO, Clip, GSPOToken, Objective
from tests.objectives.cases import Case

PER_TOKEN = torch.tensor([[1.5, -1.0, 0.0, 2.0, -0.5, 1.0]], dtype=torch.float64).expand(5, 6)


def plain_sapo(logprob: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    tau = torch.where(advantage > 0, 1.5, 3.0)
    return (advantage * 4 / tau / (1 + torch.exp(-tau * (logprob.exp() / old.exp() - 1)))).sum()


def plain_gmpo(logprob: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """With one advantage for the completion."""
    ratio = logprob.exp() / old.exp()
    clipped = torch.minimum(ratio, torch.tensor(math.exp(0.3))) if advantage[0] > 0 else ratio.clamp(min=math.exp(-0.2))
    return (clipped.prod() ** (1 / len(logprob)) * advantage).sum()


def plain_dppo(logprob: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p, q, a in zip(logprob.exp(), old.exp(), advantage, strict=True):
        if not (abs(p - q) > 0.02 and (a > 0) == (p > q)):
            total = total + p / q * a
    return total


def plain_gspo_token(logprob: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    sequence = (logprob.exp().prod() / old.exp().prod()).detach() ** (1 / len(logprob))
    for p, a in zip(logprob.exp(), advantage, strict=True):
        own = sequence * p / p.detach()
        total = total + torch.minimum(own * a, own.clamp(0.95, 1.05) * a)
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_token", [False, True], ids=["per completion", "per token"])
@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (SAPO(1.5, 3.0), plain_sapo),
        (GMPO(0.2, 0.3), plain_gmpo),
        (DPPO("tv", 0.02), plain_dppo),
        (GSPOToken(0.05, None), plain_gspo_token),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_gradient_is_that_of_autograd_of_the_plain_form(objective: Objective, plain, per_token: bool, seed: int):
    if per_token and plain is plain_gmpo:
        pytest.skip("the paper has one advantage per completion")
    case = Case(seed)
    advantages = PER_TOKEN if per_token else case.advantages[:, None].expand(5, 6)
    loss = objective(case.logprobs, case.old, advantages, case.mask).loss_NT.sum()
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(case.mask.sum(1).tolist()):
        if length:
            expected = expected - plain(case.logprobs[row, :length], case.old[row, :length], advantages[row, :length])
    torch.testing.assert_close(loss, expected)
    (gradient,), (wanted,) = (torch.autograd.grad(value, case.logprobs) for value in (loss, expected))
    torch.testing.assert_close(gradient, wanted)


def test_sapo_weighs_a_token_as_the_paper_says():
    # The weight of grad log pi is 4 p (1 - p) rho A with p = sigmoid(x), x = tau (rho - 1), and 4 p (1 - p) is
    # sech^2(x / 2).
    case = Case()
    ratio = (case.logprobs - case.old).exp().detach()
    tau = torch.where(case.advantages > 0, 1.0, 1.05)[:, None]
    expected = -ratio * case.advantages[:, None] / torch.cosh(tau / 2 * (ratio - 1)) ** 2
    torch.testing.assert_close(case.gradient(SAPO()), torch.where(case.mask, expected, 0))


def test_sapo_with_a_tau_near_zero_is_the_ratio_without_a_clip():
    # The loss differs by a constant: 4/tau sigmoid(tau x) = 2/tau + x + O(tau^2).
    case = Case()
    torch.testing.assert_close(case.gradient(SAPO(1e-6, 1e-6)), case.gradient(Clip(1e3)), rtol=1e-5, atol=1e-5)


def test_gmpo_without_a_clip_is_gspo_without_a_clip():
    case = Case()
    torch.testing.assert_close(case.terms(GMPO(1e3)).loss_NT, case.terms(GSPO(1e3, None)).loss_NT)
    torch.testing.assert_close(case.gradient(GMPO(1e3)), case.gradient(GSPO(1e3, None)))


def test_one_token_far_off_moves_gmpo_by_its_clip_alone():
    # By hand, for ratios 1 and e^5: (1 * e^0.4)^(1/2); GRPO's would clip the token and keep the other's gradient 1.
    logprobs = torch.tensor([[-6.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-6.0, -6.0]], dtype=torch.float64)
    terms = GMPO()(logprobs, old, torch.ones(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(terms.loss_NT, -torch.full((1, 2), math.exp(0.2), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(terms.loss_NT.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor([[-math.exp(0.2), 0.0]], dtype=torch.float64))
    assert terms.clipped_NT.tolist() == [[False, True]]


def test_gspo_token_is_gspo_where_a_completion_has_one_advantage_and_differs_where_not():
    for seed in range(3):
        case = Case(seed)
        for objective, token in ((GSPO(), GSPOToken()), (GSPO(0.3, None, 1.4), GSPOToken(0.3, None, 1.4))):
            torch.testing.assert_close(case.terms(token).loss_NT, case.terms(objective).loss_NT)
            torch.testing.assert_close(case.gradient(token), case.gradient(objective))
    case = Case()
    losses = [kind(0.3, None)(case.logprobs, case.old, PER_TOKEN, case.mask) for kind in (GSPO, GSPOToken)]
    torch.testing.assert_close(losses[0].loss_NT, losses[1].loss_NT)
    gradients = [torch.autograd.grad(terms.loss_NT.sum(), case.logprobs)[0] for terms in losses]
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_the_binary_divergence_is_a_lower_bound_of_that_of_the_distributions(divergence: str):
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    token = torch.randint(7, (50, 1), generator=generator)
    got = binary_divergence(new.gather(1, token), old.gather(1, token), divergence)[:, 0]
    whole = (new.exp() - old.exp()).abs().sum(1) / 2 if divergence == "tv" else (old.exp() * (old - new)).sum(1)
    assert (got <= whole + 1e-12).all()
    assert (got > 0).all()
    # Of two tokens it is the divergence itself.
    new, old = torch.randn(2, 50, 2, generator=generator, dtype=torch.float64).log_softmax(-1)
    whole = (new.exp() - old.exp()).abs().sum(1) / 2 if divergence == "tv" else (old.exp() * (old - new)).sum(1)
    torch.testing.assert_close(binary_divergence(new[:, :1], old[:, :1], divergence)[:, 0], whole)


def test_the_binary_divergence_of_certain_tokens_is_finite():
    certain, likely = torch.zeros(1, 1), torch.full((1, 1), math.log(0.5))
    for divergence in ("tv", "kl"):
        assert binary_divergence(certain, certain, divergence).item() == 0
        for pair in ((certain, likely), (likely, certain)):
            moved = binary_divergence(*pair, divergence)
            assert moved.isfinite().all()
            assert moved.item() >= 0.5
    with pytest.raises(ValueError, match="divergence is 'js'"):
        binary_divergence(certain, certain, "js")


def test_dppo_lets_a_rare_token_double_and_stops_a_likely_one():
    # GRPO does the opposite: it clips the first, whose ratio is 2, and not the second, whose ratio is 0.81.
    logprobs = torch.tensor([[0.002, 0.8]], dtype=torch.float64).log().requires_grad_()
    old = torch.tensor([[0.001, 0.99]], dtype=torch.float64).log()
    advantages, mask = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    for divergence in ("tv", "kl"):
        assert DPPO(divergence)(logprobs, old, advantages, mask).clipped_NT.tolist() == [[False, True]]
    assert Clip()(logprobs, old, advantages, mask).clipped_NT.tolist() == [[True, False]]
