"""Divergences from a teacher: by hand, against torch.distributions, against each other, and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.functional import (
    OutputHead,
    adding_in_place,
    sampled_advantages,
    sampled_divergence,
    vocabulary_divergence,
)

M, D, E, V = 7, 5, 3, 11
KINDS = ("reverse_kl", "forward_kl", "jsd")


def plain(hidden, head, teacher_hidden, teacher_head, kind, beta=0.5):
    """The divergences out of whole ``[M, V]`` logits, by the formulas of their definitions."""

    def logprobs(hidden, head):
        tokens = min(len(one.weight_VD) for one in (head_, teacher_head_))
        logits = torch.nn.functional.linear(hidden, head.weight_VD, head.bias_V)[:, :tokens]
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return torch.log_softmax(logits / head.temperature, -1)

    head_, teacher_head_ = head, teacher_head
    p, q = logprobs(hidden, head), logprobs(teacher_hidden, teacher_head).detach()

    def kl(one, other):
        return (one.exp() * (one - other)).sum(-1)

    if kind == "reverse_kl":
        return kl(p, q)
    if kind == "forward_kl":
        return kl(q, p)
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def inputs(frozen=False, bias=True, rows=M, vocabulary=(V, V), dtype=torch.float64, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, teacher_hidden = normal(rows, D).requires_grad_(), normal(rows, E)
    weight = normal(vocabulary[0], D).requires_grad_(not frozen)
    bias_V = normal(vocabulary[0]).requires_grad_(not frozen) if bias else None
    teacher_head = OutputHead(normal(vocabulary[1], E), temperature=1.3)
    return hidden, OutputHead(weight, bias_V, **options), teacher_hidden, teacher_head


def gradients(function, hidden, head, *rest, **options):
    """The divergences, and the gradients of a weighted sum of them, different for every row."""
    result = function(hidden, head, *rest, **options)
    loss = (torch.linspace(-1, 2, len(hidden), dtype=result.dtype) * result).sum()
    leaves = [leaf for leaf in (hidden, head.weight_VD, head.bias_V) if leaf is not None and leaf.requires_grad]
    return result, *torch.autograd.grad(loss, leaves)


def test_values_by_hand():
    # p = (1/4, 3/4) and q = (1/2, 1/2).
    one = torch.ones(1, 1)
    arguments = one, OutputHead(torch.tensor([[0.0], [math.log(3.0)]])), one, OutputHead(torch.zeros(2, 1))
    half, log = math.log(2), math.log
    expected = {
        "reverse_kl": 0.25 * log(0.5) + 0.75 * log(1.5),
        "forward_kl": 0.5 * half + 0.5 * log(2 / 3),
        # m = (3/8, 5/8)
        "jsd": 0.5 * (0.5 * log(4 / 3) + 0.5 * log(0.8)) + 0.5 * (0.25 * log(2 / 3) + 0.75 * log(1.2)),
    }
    for kind, value in expected.items():
        assert vocabulary_divergence(*arguments, kind).item() == pytest.approx(value, rel=1e-6), kind


def test_the_kls_are_those_of_torch_distributions():
    hidden, head, teacher_hidden, teacher_head = inputs(bias=False)
    p = Categorical(logits=hidden @ head.weight_VD.T)
    q = Categorical(logits=teacher_hidden @ teacher_head.weight_VD.T / 1.3)
    for kind, expected in {"reverse_kl": kl_divergence(p, q), "forward_kl": kl_divergence(q, p)}.items():
        torch.testing.assert_close(
            vocabulary_divergence(hidden, head, teacher_hidden, teacher_head, kind, chunk_size=2), expected
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"temperature": 0.7}])
@pytest.mark.parametrize("vocabulary", [(V, V), (V, V + 3), (V + 2, V)], ids=["equal", "longer teacher", "shorter"])
def test_gradients_are_those_of_the_plain_form(kind, frozen, options, vocabulary):
    arguments = inputs(frozen, vocabulary=vocabulary, **options)
    expected = gradients(plain, *arguments, kind, beta=0.3)
    torch.testing.assert_close(gradients(vocabulary_divergence, *arguments, kind, beta=0.3, chunk_size=3), expected)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)


@given(st.integers(0, 9), st.integers(1, 12), st.booleans(), st.sampled_from(KINDS), st.integers(0, 99))
def test_chunk_size_does_not_change_the_result(rows, chunk_size, frozen, kind, seed):
    arguments = inputs(frozen, rows=rows, seed=seed)
    whole = gradients(vocabulary_divergence, *arguments, kind)
    torch.testing.assert_close(gradients(vocabulary_divergence, *arguments, kind, chunk_size=chunk_size), whole)
    torch.testing.assert_close(whole, gradients(plain, *arguments, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_token_estimates_value_and_gradient_of_the_whole_vocabulary(kind):
    """The expectations, by enumeration of the vocabulary."""
    hidden, head, teacher_hidden, teacher_head = inputs(bias=False, rows=1)
    logp = (hidden @ head.weight_VD.T).log_softmax(-1)[0]
    logq = (teacher_hidden @ teacher_head.weight_VD.T / 1.3).log_softmax(-1)[0]
    p, log_ratio = logp.exp().detach(), (logq - logp).detach()
    value, *expected = gradients(vocabulary_divergence, hidden, head, teacher_hidden, teacher_head, kind, beta=0.2)
    estimates = sampled_divergence(log_ratio, kind, beta=0.2)
    assert (estimates >= 0).all()
    torch.testing.assert_close((p * estimates).sum(), value[0].detach())
    loss = -(p * sampled_advantages(log_ratio, kind, beta=0.2) * logp).sum()
    weight = -1  # that of the first of the rows in `gradients`
    for found, whole in zip(torch.autograd.grad(weight * loss, (hidden, head.weight_VD)), expected, strict=True):
        torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("of_samples", [False, True])
def test_the_jsd_tends_to_the_kls(of_samples):
    hidden, *rest = inputs(rows=4)
    arguments = hidden / 4, *rest  # with small ratios, for the limit is reached where beta w is small
    log_ratio = torch.tensor([-1.5, -0.2, 0.0, 0.7], dtype=torch.float64)

    def value(kind, beta=0.5):
        if of_samples:
            return torch.stack([sampled_divergence(log_ratio, kind, beta), sampled_advantages(log_ratio, kind, beta)])
        return vocabulary_divergence(*arguments, kind, beta)

    torch.testing.assert_close(value("jsd", 1e-6) / 1e-6, value("forward_kl"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value("jsd", 1 - 1e-6) / 1e-6, value("reverse_kl"), rtol=1e-4, atol=1e-5)


def test_equal_distributions_have_no_divergence_and_no_gradient():
    hidden, head, *_ = inputs()
    for kind in KINDS:
        value, *found = gradients(vocabulary_divergence, hidden, head, hidden.detach(), head, kind)
        for tensor in (
            value,
            *found,
            sampled_advantages(torch.zeros(3), kind),
            sampled_divergence(torch.zeros(3), kind),
        ):
            torch.testing.assert_close(tensor, torch.zeros_like(tensor), atol=1e-14, rtol=0)


def test_no_gradient_reaches_the_teacher():
    hidden, head, teacher_hidden, teacher_head = inputs()
    teacher_hidden.requires_grad_()
    teacher_head.weight_VD.requires_grad_()
    vocabulary_divergence(hidden, head, teacher_hidden, teacher_head, "jsd").sum().backward()
    assert teacher_hidden.grad is None
    assert teacher_head.weight_VD.grad is None
    assert hidden.grad is not None


def test_the_gradient_of_the_head_is_added_in_place():
    hidden, head, *teacher = inputs(dtype=torch.float32)
    expected = gradients(vocabulary_divergence, hidden, head, *teacher, "reverse_kl")[2]
    head.weight_VD.grad = torch.ones_like(head.weight_VD)
    with adding_in_place():
        result = vocabulary_divergence(hidden, head, *teacher, "reverse_kl")
        (torch.linspace(-1, 2, M) * result).sum().backward()
    torch.testing.assert_close(head.weight_VD.grad, expected + 1)


class _Largest(TorchDispatchMode):
    """Records the largest tensor with a vocabulary's columns."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if isinstance(out, Tensor) and out.dim() == 2 and out.shape[1] == 301:
            self.rows = max(self.rows, len(out))
        return out


@pytest.mark.parametrize("frozen", [False, True])
def test_no_logits_of_all_rows_exist(frozen):
    arguments = inputs(frozen, rows=64, vocabulary=(301, 301), dtype=torch.float32)
    with _Largest() as seen:
        vocabulary_divergence(*arguments, "jsd", chunk_size=8).sum().backward()
    assert 0 < seen.rows <= 8


def test_half_precision_agrees_within_rounding():
    hidden, head, teacher_hidden, teacher_head = inputs(dtype=torch.float32)
    exact = vocabulary_divergence(hidden, head, teacher_hidden, teacher_head, "reverse_kl")
    half = teacher_hidden.bfloat16(), teacher_head._replace(weight_VD=teacher_head.weight_VD.bfloat16())
    for found in (
        vocabulary_divergence(hidden, head, *half, "reverse_kl"),  # only the teacher is in bfloat16
        vocabulary_divergence(hidden.bfloat16(), OutputHead(*(t.bfloat16() for t in head[:2])), *half, "reverse_kl"),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


def test_extreme_ratios_stay_finite():
    log_ratio = torch.tensor([-200.0, 200.0])
    for kind in KINDS:
        assert sampled_divergence(log_ratio, kind).isfinite().all()
        assert sampled_advantages(log_ratio, kind).isfinite().all()


def test_mistakes_are_refused():
    arguments = inputs()
    with pytest.raises(ValueError, match="divergence is 'kl', but must be one of 'reverse_kl', 'forward_kl', 'jsd'"):
        vocabulary_divergence(*arguments, "kl")
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="beta must be between 0 and 1"):
            sampled_advantages(torch.zeros(1), "jsd", beta)
    with pytest.raises(ValueError, match="of the same tokens, but are 7 and 6"):
        vocabulary_divergence(*arguments[:2], arguments[2][:6], arguments[3], "jsd")
