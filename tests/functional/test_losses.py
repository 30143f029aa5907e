from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.functional import aggregate, group_advantages, masked_mean, masked_sum, policy_loss
from grpo_lightning.functional.losses import MAX_LOG_RATIO

NAN = math.nan
AGGREGATIONS = ["grpo", "dr_grpo", "bnpo", "dapo"]
VARIANTS = {
    "grpo": {},
    "clip-higher": {"epsilon_high": 0.5},
    "two-sided": {"delta": 1.6},
    "gspo": {"ratio_level": "sequence", "epsilon": 0.05},
    "cispo": {"objective": "cispo", "cispo_epsilon_high": 1.3},
    "kl": {"beta": 0.1},
}


class Case:
    """Five sequences of up to six tokens, some with ratios beyond every clip, one without a token that counts."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal() -> torch.Tensor:
            return torch.randn(5, 6, generator=generator, dtype=torch.float64).to(dtype)

        self.logprobs = (-2 + normal() * 0.5).requires_grad_()
        self.old = self.logprobs.detach() + normal() * 0.5
        self.ref = self.logprobs.detach() + normal() * 0.5
        self.advantages = torch.tensor([1.5, -1.0, 0.5, -2.0, 1.0], dtype=dtype)
        lengths = torch.tensor([6, 4, 1, 3, 0])
        self.mask = torch.arange(6) < lengths[:, None]

    def terms(self, **options):
        if options.get("beta"):
            options.setdefault("ref_logprobs_NT", self.ref)
        return policy_loss(self.logprobs, self.old, self.advantages, self.mask, **options)

    def gradient(self, **options) -> torch.Tensor:
        return torch.autograd.grad(self.terms(**options).loss_NT.sum(), self.logprobs)[0]


# --- every variant against the formula of its paper, by loops over scalars


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def paper_ppo_clip(rho: float, advantage: float, epsilon: float = 0.2, epsilon_high: float = 0.2) -> float:
    return min(rho * advantage, clip(rho, 1 - epsilon, 1 + epsilon_high) * advantage)


def paper_dual_clip(rho: float, advantage: float, c: float) -> float:
    surrogate = paper_ppo_clip(rho, advantage)
    return max(surrogate, c * advantage) if advantage < 0 else surrogate


def paper_kl(logprob: float, ref: float) -> float:
    return math.exp(ref) / math.exp(logprob) - math.log(math.exp(ref) / math.exp(logprob)) - 1


def geometric_mean_ratio(case: Case, i: int) -> float:
    product, length = 1.0, int(case.mask[i].sum())
    for t in range(length):
        product *= math.exp(case.logprobs[i, t].item()) / math.exp(case.old[i, t].item())
    return product ** (1 / length)


PAPERS = {
    "grpo": lambda case, i, rho, a, logprob, ref: paper_ppo_clip(rho, a),
    "clip-higher": lambda case, i, rho, a, logprob, ref: paper_ppo_clip(rho, a, 0.2, 0.5),
    "two-sided": lambda case, i, rho, a, logprob, ref: paper_dual_clip(rho, a, 1.6),
    "gspo": lambda case, i, rho, a, logprob, ref: paper_ppo_clip(geometric_mean_ratio(case, i), a, 0.05, 0.05),
    "cispo": lambda case, i, rho, a, logprob, ref: min(rho, 1.3) * a * logprob,
    "kl": lambda case, i, rho, a, logprob, ref: paper_ppo_clip(rho, a) - 0.1 * paper_kl(logprob, ref),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(5))
def test_papers_formula_by_loops(variant, seed):
    case = Case(seed)
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for i in range(5):
        for t in range(int(case.mask[i].sum())):
            logprob, old, ref = (x[i, t].item() for x in (case.logprobs, case.old, case.ref))
            rho = math.exp(logprob) / math.exp(old)
            expected[i, t] = -PAPERS[variant](case, i, rho, case.advantages[i].item(), logprob, ref)
    torch.testing.assert_close(case.terms(**VARIANTS[variant]).loss_NT.detach(), expected)


def test_cispo_gradient_is_the_capped_ratio_times_the_advantage():
    case = Case()
    ratio = (case.logprobs - case.old).exp().detach()
    expected = torch.where(case.mask, -ratio.clamp(max=1.3) * case.advantages[:, None], 0)
    torch.testing.assert_close(case.gradient(**VARIANTS["cispo"]), expected)


def test_gspo_gradient_weighs_all_tokens_of_a_sequence_equally():
    # GSPO, arXiv 2507.18071: grad of s_i A_i is s_i A_i 1/|y_i| sum_t grad log pi; the loss has it at |y_i| tokens.
    case = Case()
    terms = case.terms(ratio_level="sequence", epsilon=10.0)
    gradient = torch.autograd.grad(terms.loss_NT.sum(), case.logprobs)[0]
    expected = torch.where(case.mask, -terms.ratio_NT * case.advantages[:, None], 0)
    torch.testing.assert_close(gradient, expected)
    for i in range(4):
        torch.testing.assert_close(terms.ratio_NT[i, 0].item(), geometric_mean_ratio(case, i))


@pytest.mark.parametrize("options", [{}, {"ratio_level": "sequence"}, {"objective": "cispo"}])
def test_on_policy_gradient_is_reinforce_with_a_group_baseline(options):
    # The softmax policy's own gradient, through the logits, of - sum_i (r_i - mean) log pi(y_i).
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.randint(7, (4, 3, 1), generator=generator)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    logprobs = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    advantages = group_advantages(rewards[None], kind="none-scaled")[0]

    terms = policy_loss(logprobs, None, advantages, mask, **options)
    got = torch.autograd.grad(terms.loss_NT.sum(), logits, retain_graph=True)[0]
    reinforce = -((rewards - 0.5)[:, None] * logprobs).sum()
    torch.testing.assert_close(got, torch.autograd.grad(reinforce, logits, retain_graph=True)[0])
    assert torch.equal(terms.ratio_NT, torch.ones(4, 3, dtype=torch.float64))
    assert not terms.clipped_NT.any()

    same = policy_loss(logprobs, logprobs.detach(), advantages, mask, **options)
    assert torch.equal(same.loss_NT, terms.loss_NT)


# --- clipping


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "loss", "gradient", "clipped"),
    [  # by hand; the slope of -rho A in the log-prob is -rho A
        (1.1, 1.0, {}, -1.1, -1.1, False),
        (1.3, 1.0, {}, -1.2, 0.0, True),
        (1.3, -1.0, {}, 1.3, 1.3, False),
        (0.7, -1.0, {}, 0.8, 0.0, True),
        (0.7, 1.0, {}, -0.7, -0.7, False),
        (1.3, 0.0, {}, 0.0, 0.0, False),
        (1.3, 1.0, {"epsilon_high": 0.4}, -1.3, -1.3, False),
        (0.7, -1.0, {"epsilon_high": 0.4}, 0.8, 0.0, True),
        (3.0, -1.0, {"delta": 2.0}, 2.0, 0.0, True),
        (1.9, -1.0, {"delta": 2.0}, 1.9, 1.9, False),
        (3.0, 1.0, {"delta": 2.0}, -1.2, 0.0, True),
        (8.0, 1.0, {"objective": "cispo"}, 5 * math.log(2), -5.0, True),
        (4.0, 1.0, {"objective": "cispo"}, 4 * math.log(2), -4.0, False),
        (0.1, -1.0, {"objective": "cispo"}, -0.1 * math.log(2), 0.1, False),
    ],
)
def test_one_token_by_hand(ratio, advantage, options, loss, gradient, clipped):
    logprob = torch.tensor([[0.5]], dtype=torch.float64).log().requires_grad_()
    old = logprob.detach() - math.log(ratio)
    mask = torch.tensor([[True]])
    terms = policy_loss(logprob, old, torch.tensor([advantage], dtype=torch.float64), mask, **options)
    terms.loss_NT.sum().backward()
    assert terms.loss_NT.item() == pytest.approx(loss)
    assert terms.ratio_NT.item() == pytest.approx(ratio)
    assert logprob.grad.item() == pytest.approx(gradient)
    assert terms.clipped_NT.item() is clipped


@pytest.mark.parametrize("variant", ["grpo", "clip-higher", "two-sided"])
@pytest.mark.parametrize("seed", range(5))
def test_clipped_is_where_the_gradient_is_cut(variant, seed):
    case = Case(seed)
    terms = case.terms(**VARIANTS[variant])
    assert torch.equal(terms.clipped_NT, (case.gradient(**VARIANTS[variant]) == 0) & case.mask)
    assert terms.clipped_NT.any()


def test_ratio_far_off_policy_stays_finite():
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-300.0, -1.0]])
    mask = torch.tensor([[True, True]])
    for options in ({}, {"delta": 2.0}, {"objective": "cispo"}, {"ratio_level": "sequence"}):
        terms = policy_loss(logprobs, old, torch.tensor([-1.0]), mask, **options)
        (gradient,) = torch.autograd.grad(terms.loss_NT.sum(), logprobs)
        assert terms.loss_NT.isfinite().all()
        assert gradient.isfinite().all()
        assert terms.ratio_NT.max().item() == pytest.approx(math.exp(MAX_LOG_RATIO))


# --- masks, constants, options


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, -1e30])
def test_masked_garbage_changes_neither_loss_nor_gradient(variant, garbage):
    def outcome(case: Case):
        terms = case.terms(**VARIANTS[variant])
        loss = aggregate(terms.loss_NT, case.mask, aggregation="grpo", sequences=5, tokens=14, max_tokens=6)
        return *terms, loss, torch.autograd.grad(loss, case.logprobs)[0]

    clean, dirty = Case(), Case()
    with torch.no_grad():
        for tensor in (dirty.logprobs, dirty.old, dirty.ref):
            tensor[~dirty.mask] = garbage
    dirty.advantages[4] = garbage  # of the sequence in which nothing counts
    for expected, got in zip(outcome(clean), outcome(dirty), strict=True):
        assert torch.equal(expected, got)
    terms = dirty.terms(**VARIANTS[variant])
    assert not terms.loss_NT[~dirty.mask].any()
    assert not terms.kl_NT[~dirty.mask].any()
    assert not terms.clipped_NT[~dirty.mask].any()
    assert (terms.ratio_NT[~dirty.mask] == 1).all()


def test_advantages_per_token_and_per_sequence_agree_and_are_constants():
    case = Case()
    per_token = case.advantages[:, None].expand(5, 6).clone().requires_grad_()
    terms = policy_loss(case.logprobs, case.old, per_token, case.mask)
    assert torch.equal(terms.loss_NT, case.terms().loss_NT)
    terms.loss_NT.sum().backward()
    assert per_token.grad is None
    with torch.no_grad():
        per_token[0, 1] = -7.0
    changed = policy_loss(case.logprobs, case.old, per_token, case.mask).loss_NT != terms.loss_NT
    assert changed.nonzero().tolist() == [[0, 1]]


def test_only_the_loss_carries_gradients():
    terms = Case().terms(beta=0.1)
    assert terms.loss_NT.requires_grad
    assert not any(tensor.requires_grad for tensor in terms[1:])


def test_reference_without_beta_is_measured_and_not_minimised():
    case = Case()
    with_reference, without = case.terms(ref_logprobs_NT=case.ref), case.terms()
    assert torch.equal(with_reference.loss_NT, without.loss_NT)
    assert torch.equal(with_reference.kl_NT, case.terms(beta=0.1).kl_NT)
    assert with_reference.kl_NT.any()
    assert not without.kl_NT.any()


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.1},
        {"epsilon_high": 0.5},
        {"delta": 1.3},
        {"ratio_level": "sequence"},
        {"objective": "cispo"},
        {"beta": 0.1},
        {"beta": 0.2},
        {"beta": 0.1, "kl_estimator": "k1"},
        {"beta": 0.1, "kl_estimator": "k2"},
        {"objective": "cispo", "cispo_epsilon_high": 1.1},
    ],
)
def test_each_option_changes_the_gradient(options):
    def gradients(options):
        return torch.stack([Case(seed).gradient(**options) for seed in range(3)])

    neighbours = [{}, {"beta": 0.1}, {"objective": "cispo"}]
    assert all(not torch.allclose(gradients(options), gradients(other)) for other in neighbours if other != options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_stays_close(variant):
    half = Case(dtype=torch.bfloat16)
    double = Case()
    double.logprobs = half.logprobs.detach().double().requires_grad_()
    double.old, double.ref = half.old.double(), half.ref.double()
    got, expected = half.terms(**VARIANTS[variant]).loss_NT, double.terms(**VARIANTS[variant]).loss_NT
    torch.testing.assert_close(got.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio_level": "word"}, "ratio_level is 'word', but must be one of 'token', 'sequence'"),
        ({"objective": "ppo"}, "objective is 'ppo'"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon_high": -0.1}, "epsilon_high"),
        ({"delta": 1.1}, r"delta must be above 1 \+ epsilon_high = 1.2"),
        ({"delta": 2.0, "objective": "cispo"}, "delta belongs to objective='clip'"),
        ({"cispo_epsilon_high": 0.0}, "cispo_epsilon_high must be positive"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"beta": 0.1, "ref_logprobs_NT": None}, "ref_logprobs_NT is not given"),
        ({"beta": 0.1, "kl_estimator": "k9"}, "estimator is 'k9'"),
        ({"ref_logprobs_NT": torch.zeros(5, 1)}, "same shape"),
    ],
)
def test_bad_options(options, message):
    case = Case()
    if options.get("beta", 0) > 0:
        options = {"ref_logprobs_NT": case.ref, **options}
    with pytest.raises(ValueError, match=message):
        policy_loss(case.logprobs, case.old, case.advantages, case.mask, **options)


def test_bad_shapes():
    case = Case()
    with pytest.raises(ValueError, match="same shape"):
        policy_loss(case.logprobs, case.old[:, :3], case.advantages, case.mask)
    with pytest.raises(ValueError, match="boolean"):
        policy_loss(case.logprobs, case.old, case.advantages, case.mask.long())
    with pytest.raises(ValueError, match=r"advantages_N must be \[N\] or \[N, T\]"):
        policy_loss(case.logprobs, case.old, case.advantages[:3], case.mask)
    with pytest.raises(ValueError, match="two dimensions"):
        policy_loss(case.logprobs[0], case.old[0], case.advantages[0], case.mask[0])


# --- aggregation


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
    case = Case()
    loss, mask = case.terms().loss_NT, case.mask
    counts = {"sequences": 5, "tokens": mask.sum(), "max_tokens": 6}
    assert torch.equal(aggregate(loss, mask, aggregation="grpo", **counts), masked_mean(loss, mask, dim=1).mean())
    assert torch.equal(aggregate(loss, mask, aggregation="dapo", **counts), masked_mean(loss, mask))
    assert torch.equal(aggregate(loss, mask, aggregation="dr_grpo", **counts), masked_sum(loss, mask) / loss.numel())


@settings(deadline=None, max_examples=50)
@given(assignment=st.lists(st.integers(0, 3), min_size=5, max_size=5), seed=st.integers(0, 100))
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("variant", ["kl", "gspo"])
def test_any_split_into_micro_batches_gives_the_loss_and_gradient_of_the_whole(aggregation, variant, assignment, seed):
    case = Case(seed)
    counts = {"sequences": 5, "tokens": case.mask.sum(), "max_tokens": 6}

    def loss(rows: torch.Tensor) -> torch.Tensor:
        options = dict(VARIANTS[variant])
        if "beta" in options:
            options["ref_logprobs_NT"] = case.ref[rows]
        terms = policy_loss(case.logprobs[rows], case.old[rows], case.advantages[rows], case.mask[rows], **options)
        return aggregate(terms.loss_NT, case.mask[rows], aggregation=aggregation, **counts)

    whole = loss(torch.arange(5))
    parts = [loss((torch.tensor(assignment) == part).nonzero().squeeze(1)) for part in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    (expected,) = torch.autograd.grad(whole, case.logprobs)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), case.logprobs)[0], expected)


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
