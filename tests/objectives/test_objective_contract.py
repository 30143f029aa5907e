"""What holds for every objective. A new class of the project is tried here without being named."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.functional import Aggregation, aggregate
from grpo_lightning.objectives import CISPO, GSPO, Clip, Objective, PolicyLossTerms, check_objective
from tests.objectives.cases import OBJECTIVES, Case

AGGREGATIONS: list[Aggregation] = ["grpo", "dr_grpo", "bnpo", "dapo"]
each_objective = pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.__name__)


def test_the_list_holds_the_objectives_of_the_package() -> None:
    assert {Clip, GSPO, CISPO} <= set(OBJECTIVES)
    assert len({kind.name for kind in OBJECTIVES}) == len(OBJECTIVES)


@settings(deadline=None, max_examples=30)
@given(assignment=st.lists(st.integers(0, 3), min_size=5, max_size=5), seed=st.integers(0, 100))
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@each_objective
def test_any_split_into_micro_batches_gives_the_loss_and_gradient_of_the_whole(kind, aggregation, assignment, seed):
    case, objective = Case(seed), kind()
    counts = {"sequences": 5, "tokens": case.mask.sum(), "max_tokens": 6}

    def loss(rows: torch.Tensor) -> torch.Tensor:
        width = int(case.mask[rows].sum(1).max()) if len(rows) else 0  # a micro-batch is as wide as its longest row
        cut = (rows, slice(0, width))
        terms = objective(case.logprobs[cut], case.old[cut], case.advantages[rows], case.mask[cut])
        return aggregate(terms.loss_NT, case.mask[cut], aggregation=aggregation, **counts)

    whole = loss(torch.arange(5))
    parts = [loss((torch.tensor(assignment) == part).nonzero().squeeze(1)) for part in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    (expected,) = torch.autograd.grad(whole, case.logprobs)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), case.logprobs)[0], expected)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, -1e30])
@each_objective
def test_masked_garbage_changes_neither_loss_nor_gradient(kind, garbage):
    def outcome(case: Case):
        terms = case.terms(kind())
        loss = aggregate(terms.loss_NT, case.mask, aggregation="grpo", sequences=5, tokens=14, max_tokens=6)
        return *terms, loss, torch.autograd.grad(loss, case.logprobs)[0]

    clean, dirty = Case(), Case()
    with torch.no_grad():
        for tensor in (dirty.logprobs, dirty.old):
            tensor[~dirty.mask] = garbage
    dirty.advantages[4] = garbage  # of the sequence in which nothing counts
    for expected, got in zip(outcome(clean), outcome(dirty), strict=True):
        assert torch.equal(expected, got)
    terms = dirty.terms(kind())
    assert not terms.loss_NT[~dirty.mask].any()
    assert not terms.clipped_NT[~dirty.mask].any()
    assert (terms.ratio_NT[~dirty.mask] == 1).all()


@each_objective
def test_advantages_per_token_and_per_sequence_agree_and_are_constants(kind):
    case = Case()
    per_token = case.advantages[:, None].expand(5, 6).clone().requires_grad_()
    terms = kind()(case.logprobs, case.old, per_token, case.mask)
    assert torch.equal(terms.loss_NT, case.terms(kind()).loss_NT)
    terms.loss_NT.sum().backward()
    assert per_token.grad is None
    with torch.no_grad():
        per_token[0, 1] = -7.0
    changed = kind()(case.logprobs, case.old, per_token, case.mask).loss_NT != terms.loss_NT
    assert changed.nonzero().tolist() == [[0, 1]]


@each_objective
def test_without_old_logprobs_the_policy_is_the_one_that_sampled(kind):
    case = Case()
    terms = kind()(case.logprobs, None, case.advantages, case.mask)
    same = kind()(case.logprobs, case.logprobs.detach(), case.advantages, case.mask)
    assert torch.equal(terms.loss_NT, same.loss_NT)
    assert torch.equal(terms.ratio_NT, torch.ones(5, 6, dtype=torch.float64))
    assert not terms.clipped_NT.any()


@each_objective
def test_only_the_loss_carries_gradients(kind):
    terms = Case().terms(kind())
    assert terms.loss_NT.requires_grad
    assert not any(tensor.requires_grad for tensor in terms[1:])


@each_objective
def test_half_precision_stays_close(kind):
    half, double = Case(dtype=torch.bfloat16), Case()
    double.logprobs = half.logprobs.detach().double().requires_grad_()
    double.old = half.old.double()
    got, expected = half.terms(kind()).loss_NT, double.terms(kind()).loss_NT
    torch.testing.assert_close(got.double(), expected, rtol=0.05, atol=0.05)


@each_objective
def test_ratio_far_off_policy_stays_finite(kind):
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    terms = kind()(logprobs, torch.tensor([[-300.0, -1.0]]), torch.tensor([-1.0]), torch.tensor([[True, True]]))
    (gradient,) = torch.autograd.grad(terms.loss_NT.sum(), logprobs)
    assert terms.loss_NT.isfinite().all()
    assert gradient.isfinite().all()


@each_objective
def test_every_objective_passes_its_trial(kind):
    check_objective(kind())


@each_objective
def test_bad_shapes(kind):
    case, objective = Case(), kind()
    with pytest.raises(ValueError, match="same shape"):
        objective(case.logprobs, case.old[:, :3], case.advantages, case.mask)
    with pytest.raises(ValueError, match="boolean"):
        objective(case.logprobs, case.old, case.advantages, case.mask.long())
    with pytest.raises(ValueError, match=r"advantages must be \[N\] or \[N, T\]"):
        objective(case.logprobs, case.old, case.advantages[:3], case.mask)
    with pytest.raises(ValueError, match="two dimensions"):
        objective(case.logprobs[0], case.old[0], case.advantages[0], case.mask[0])


# -- objectives that the trial refuses --------------------------------------------------------------------------------


class Right(Objective):
    """REINFORCE, the neighbour of each of the wrong ones below."""

    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        loss_NT = -advantages_NT * logprobs_NT
        return PolicyLossTerms(loss_NT, torch.ones_like(loss_NT), torch.zeros_like(mask_NT))


class MeanOfTheBatch(Right):
    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        return super().terms(logprobs_NT, old_logprobs_NT, advantages_NT - advantages_NT.mean(), mask_NT)


class DividedByTheWidth(Right):
    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        return super().terms(logprobs_NT, old_logprobs_NT, advantages_NT / mask_NT.shape[1], mask_NT)


class Flowing(Right):
    """Its value is each row's own, its gradient is not."""

    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        nothing = (logprobs_NT - logprobs_NT.detach()).sum()
        return super().terms(logprobs_NT + nothing, old_logprobs_NT, advantages_NT, mask_NT)


class Constant(Right):
    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        return super().terms(logprobs_NT.detach(), old_logprobs_NT, advantages_NT, mask_NT)


class NotFinite(Right):
    def terms(self, logprobs_NT, old_logprobs_NT, advantages_NT, mask_NT):
        return super().terms(logprobs_NT.log(), old_logprobs_NT, advantages_NT, mask_NT)


class OneNumber(Right):
    def terms(self, *args):
        return super().terms(*args)._replace(loss_NT=super().terms(*args).loss_NT.sum())


class Bare(Right):
    def terms(self, *args):
        return super().terms(*args).loss_NT


class NumbersAsClip(Right):
    def terms(self, *args):
        return super().terms(*args)._replace(clipped_NT=super().terms(*args).ratio_NT)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MeanOfTheBatch, "MeanOfTheBatch: its loss for a completion changes with the other completions in the"),
        (DividedByTheWidth, "DividedByTheWidth: its loss for a completion changes"),
        (Flowing, "Flowing: its loss for a completion changes"),
        (Constant, "Constant: its loss has no gradient"),
        (NotFinite, "NotFinite: its loss or gradient is not finite"),
        (OneNumber, r"OneNumber.terms: loss_NT must have the shape \(4, 5\), but is \(\)"),
        (Bare, "Bare.terms must return PolicyLossTerms, not Tensor"),
        (NumbersAsClip, "NumbersAsClip.terms: clipped_NT must be boolean"),
    ],
)
def test_an_objective_that_breaks_the_contract_is_refused_in_one_sentence(kind, message):
    check_objective(Right())
    with pytest.raises(ValueError, match=message) as error:
        check_objective(kind())
    assert "\n" not in str(error.value)
