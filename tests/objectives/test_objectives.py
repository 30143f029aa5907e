"""Each objective against the formula of its paper, against its function, and by hand; the flat keys against classes."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from grpo_lightning.advantages import Unscaled
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import (
    cispo_objective,
    clipped_objective,
    sequence_ratio,
    token_ratio,
)
from grpo_lightning.functional.losses import MAX_LOG_RATIO
from grpo_lightning.objectives import CISPO, DPPO, GMPO, GSPO, SAPO, Clip, GSPOToken, ShortForm
from grpo_lightning.objectives.short_form import OWNERS
from tests.objectives.cases import OBJECTIVES, Case

VARIANTS = {
    "grpo": Clip(),
    "clip-higher": Clip(epsilon_high=0.5),
    "two-sided": Clip(delta=1.6),
    "gspo": GSPO(0.05, None),
    "cispo": CISPO(1.3),
    "gspo-token": GSPOToken(0.05, None),
    "sapo": SAPO(1.5, 3.0),
    "gmpo": GMPO(0.2, 0.3),
    "dppo-tv": DPPO("tv", 0.02),
    "dppo-kl": DPPO("kl", 0.005),
}

# -- every variant against the formula of its paper, by loops over scalars --------------------------------------------


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def paper_ppo_clip(rho: float, advantage: float, epsilon: float = 0.2, epsilon_high: float = 0.2) -> float:
    return min(rho * advantage, clip(rho, 1 - epsilon, 1 + epsilon_high) * advantage)


def paper_dual_clip(rho: float, advantage: float, c: float) -> float:
    surrogate = paper_ppo_clip(rho, advantage)
    return max(surrogate, c * advantage) if advantage < 0 else surrogate


def geometric_mean_ratio(case: Case, i: int) -> float:
    product, length = 1.0, int(case.mask[i].sum())
    for t in range(length):
        product *= math.exp(case.logprobs[i, t].item()) / math.exp(case.old[i, t].item())
    return product ** (1 / length)


def paper_soft_gate(rho: float, advantage: float, tau_pos: float, tau_neg: float) -> float:
    tau = tau_pos if advantage > 0 else tau_neg
    return 1 / (1 + math.exp(-tau * (rho - 1))) * 4 / tau * advantage


def paper_geometric_mean(case: Case, i: int, low: float, high: float) -> float:
    """GMPO writes both signs as one formula: (prod_t min(rho^s, clip(rho^s, low, high))^s)^(1/|y|) A, s = sgn A."""
    advantage, length, product = case.advantages[i].item(), int(case.mask[i].sum()), 1.0
    sign = 1 if advantage >= 0 else -1
    for t in range(length):
        rho = math.exp(case.logprobs[i, t].item()) / math.exp(case.old[i, t].item())
        product *= min(rho**sign, clip(rho**sign, low, high)) ** sign
    return product ** (1 / length) * advantage


def paper_dppo(logprob: float, old: float, advantage: float, divergence: str, threshold: float) -> float:
    p, q = math.exp(logprob), math.exp(old)
    moved = abs(q - p) if divergence == "tv" else q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    leaves = (advantage > 0 and p / q > 1) or (advantage < 0 and p / q < 1)
    return 0.0 if leaves and moved > threshold else p / q * advantage


PAPERS = {
    "grpo": lambda case, i, rho, a, logprob: paper_ppo_clip(rho, a),
    "clip-higher": lambda case, i, rho, a, logprob: paper_ppo_clip(rho, a, 0.2, 0.5),
    "two-sided": lambda case, i, rho, a, logprob: paper_dual_clip(rho, a, 1.6),
    "gspo": lambda case, i, rho, a, logprob: paper_ppo_clip(geometric_mean_ratio(case, i), a, 0.05, 0.05),
    "cispo": lambda case, i, rho, a, logprob: min(rho, 1.3) * a * logprob,
    "gspo-token": lambda case, i, rho, a, logprob: paper_ppo_clip(geometric_mean_ratio(case, i), a, 0.05, 0.05),
    "sapo": lambda case, i, rho, a, logprob: paper_soft_gate(rho, a, 1.5, 3.0),
    # One clip range for both signs in the paper: (e^-0.2, e^0.3) in rho is (e^-0.3, e^0.2) in 1 / rho.
    "gmpo": lambda case, i, rho, a, logprob: paper_geometric_mean(
        case, i, *((math.exp(-0.2), math.exp(0.3)) if a >= 0 else (math.exp(-0.3), math.exp(0.2)))
    ),
    "dppo-tv": lambda case, i, rho, a, logprob: paper_dppo(logprob, logprob - math.log(rho), a, "tv", 0.02),
    "dppo-kl": lambda case, i, rho, a, logprob: paper_dppo(logprob, logprob - math.log(rho), a, "kl", 0.005),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(5))
def test_papers_formula_by_loops(variant, seed):
    case = Case(seed)
    expected = torch.zeros(5, 6, dtype=torch.float64)
    for i in range(5):
        for t in range(int(case.mask[i].sum())):
            logprob, old = (x[i, t].item() for x in (case.logprobs, case.old))
            rho = math.exp(logprob) / math.exp(old)
            expected[i, t] = -PAPERS[variant](case, i, rho, case.advantages[i].item(), logprob)
    torch.testing.assert_close(case.terms(VARIANTS[variant]).loss_NT.detach(), expected)


def test_cispo_gradient_is_the_capped_ratio_times_the_advantage():
    case = Case()
    ratio = (case.logprobs - case.old).exp().detach()
    expected = torch.where(case.mask, -ratio.clamp(max=1.3) * case.advantages[:, None], 0)
    torch.testing.assert_close(case.gradient(CISPO(1.3)), expected)


def test_gspo_gradient_weighs_all_tokens_of_a_sequence_equally():
    # GSPO, arXiv 2507.18071: grad of s_i A_i is s_i A_i 1/|y_i| sum_t grad log pi; the loss has it at |y_i| tokens.
    case = Case()
    terms = case.terms(GSPO(10.0, None))
    gradient = torch.autograd.grad(terms.loss_NT.sum(), case.logprobs)[0]
    expected = torch.where(case.mask, -terms.ratio_NT * case.advantages[:, None], 0)
    torch.testing.assert_close(gradient, expected)
    for i in range(4):
        torch.testing.assert_close(terms.ratio_NT[i, 0].item(), geometric_mean_ratio(case, i))


# CISPO's default cap is far above 1, and the clips keep their gradient at a ratio of 1.
@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.__name__)
def test_on_policy_gradient_is_reinforce_with_a_group_baseline(kind):
    # The softmax policy's own gradient, through the logits, of - sum_i (r_i - mean) log pi(y_i).
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.randint(7, (4, 3, 1), generator=generator)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    logprobs = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    advantages = Unscaled()(rewards[None])[0]

    terms = kind()(logprobs, None, advantages, mask)
    got = torch.autograd.grad(terms.loss_NT.sum(), logits, retain_graph=True)[0]
    reinforce = -((rewards - 0.5)[:, None] * logprobs).sum()
    torch.testing.assert_close(got, torch.autograd.grad(reinforce, logits, retain_graph=True)[0])
    assert torch.equal(terms.ratio_NT, torch.ones(4, 3, dtype=torch.float64))
    assert not terms.clipped_NT.any()


# -- each class against its function ----------------------------------------------------------------------------------


def masked(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    zero = torch.zeros((), dtype=torch.float64)
    return (
        torch.where(case.mask, case.logprobs, zero),
        torch.where(case.mask, case.old, zero),
        torch.where(case.mask, case.advantages[:, None], zero),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "ratio_of"), [(Clip, token_ratio), (GSPO, sequence_ratio)])
def test_the_clipped_classes_are_their_function(kind, ratio_of, seed):
    case = Case(seed)
    logprobs, old, advantages = masked(case)
    ratio = ratio_of(logprobs, old, case.mask)
    for epsilon, epsilon_high, delta in ((0.1, None, None), (0.1, 0.3, None), (0.1, 0.3, 1.4)):
        high = epsilon if epsilon_high is None else epsilon_high
        objective, clipped = clipped_objective(ratio, advantages, epsilon, high, delta)
        terms = case.terms(kind(epsilon, epsilon_high, delta))
        assert torch.equal(terms.loss_NT[case.mask], -objective[case.mask])
        assert torch.equal(terms.clipped_NT, clipped & case.mask)
        assert torch.equal(terms.ratio_NT, ratio)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("level", "ratio_of"), [("token", token_ratio), ("sequence", sequence_ratio)])
def test_cispo_is_its_function(level, ratio_of, seed):
    case = Case(seed)
    logprobs, old, advantages = masked(case)
    ratio = ratio_of(logprobs, old, case.mask)
    objective, capped = cispo_objective(logprobs, ratio, advantages, 1.1)
    terms = case.terms(CISPO(1.1, level))
    assert torch.equal(terms.loss_NT[case.mask], -objective[case.mask])
    assert torch.equal(terms.clipped_NT, capped & case.mask)
    assert torch.equal(terms.ratio_NT, ratio)


# -- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "loss", "gradient", "clipped"),
    [  # by hand; the slope of -rho A in the log-prob is -rho A
        (1.1, 1.0, Clip(), -1.1, -1.1, False),
        (1.3, 1.0, Clip(), -1.2, 0.0, True),
        (1.3, -1.0, Clip(), 1.3, 1.3, False),
        (0.7, -1.0, Clip(), 0.8, 0.0, True),
        (0.7, 1.0, Clip(), -0.7, -0.7, False),
        (1.3, 0.0, Clip(), 0.0, 0.0, False),
        (1.3, 1.0, Clip(epsilon_high=0.4), -1.3, -1.3, False),
        (0.7, -1.0, Clip(epsilon_high=0.4), 0.8, 0.0, True),
        (3.0, -1.0, Clip(delta=2.0), 2.0, 0.0, True),
        (1.9, -1.0, Clip(delta=2.0), 1.9, 1.9, False),
        (3.0, 1.0, Clip(delta=2.0), -1.2, 0.0, True),
        (1.3, 1.0, GSPO(), -1.0004, 0.0, True),
        (0.7, -1.0, GSPO(), 0.9997, 0.0, True),
        (8.0, 1.0, CISPO(), 5 * math.log(2), -5.0, True),
        (4.0, 1.0, CISPO(), 4 * math.log(2), -4.0, False),
        (0.1, -1.0, CISPO(), -0.1 * math.log(2), 0.1, False),
        (2.0, 1.0, SAPO(), -4 / (1 + math.exp(-1)), -8 * math.exp(-1) / (1 + math.exp(-1)) ** 2, False),
        (2.0, 1.0, GMPO(), -math.exp(0.4), 0.0, True),
        (2.0, -1.0, GMPO(), 2.0, 2.0, False),
        (0.5, -1.0, GMPO(), math.exp(-0.4), 0.0, True),
        (1.4, 1.0, DPPO(), -1.4, -1.4, False),  # from 0.357 to 0.5: by 0.143
        (1.5, 1.0, DPPO(), 0.0, 0.0, True),  # from 0.333 to 0.5: by 0.167
        (1.5, -1.0, DPPO(), 1.5, 1.5, False),
        (0.7, -1.0, DPPO(), 0.0, 0.0, True),  # from 0.714 to 0.5
        (0.7, -1.0, DPPO("kl"), 0.0, 0.0, True),  # 5/7 log 10/7 + 2/7 log 4/7 = 0.095
        (0.7, -1.0, DPPO("kl", 0.1), 0.7, 0.7, False),
        (1.3, 1.0, GSPOToken(), -1.0004, 0.0, True),
        (0.9, 1.0, GSPOToken(), -0.9, -0.9, False),
    ],
)
def test_one_token_by_hand(ratio, advantage, objective, loss, gradient, clipped):
    logprob = torch.tensor([[0.5]], dtype=torch.float64).log().requires_grad_()
    old = logprob.detach() - math.log(ratio)
    mask = torch.tensor([[True]])
    terms = objective(logprob, old, torch.tensor([advantage], dtype=torch.float64), mask)
    terms.loss_NT.sum().backward()
    assert terms.loss_NT.item() == pytest.approx(loss)
    assert terms.ratio_NT.item() == pytest.approx(ratio)
    assert logprob.grad.item() == pytest.approx(gradient)
    assert terms.clipped_NT.item() is clipped


@pytest.mark.parametrize("variant", ["grpo", "clip-higher", "two-sided", "gspo-token", "dppo-tv", "dppo-kl"])
@pytest.mark.parametrize("seed", range(5))
def test_clipped_is_where_the_gradient_is_cut(variant, seed):
    case = Case(seed)
    terms = case.terms(VARIANTS[variant])
    assert torch.equal(terms.clipped_NT, (case.gradient(VARIANTS[variant]) == 0) & case.mask)
    assert terms.clipped_NT.any()


def test_ratio_far_off_policy_is_cut():
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, True]])
    for objective in (Clip(), Clip(delta=2.0), CISPO(), GSPO(), CISPO(ratio_level="sequence")):
        terms = objective(logprobs, torch.tensor([[-300.0, -1.0]]), torch.tensor([-1.0]), mask)
        (gradient,) = torch.autograd.grad(terms.loss_NT.sum(), logprobs)
        assert terms.loss_NT.isfinite().all()
        assert gradient.isfinite().all()
        assert terms.ratio_NT.max().item() == pytest.approx(math.exp(MAX_LOG_RATIO))


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "plain"),
    [
        (Clip(epsilon=0.1), Clip()),
        (Clip(epsilon_high=0.5), Clip()),
        (Clip(delta=1.3), Clip()),
        (GSPO(epsilon=0.1), GSPO()),
        (GSPO(epsilon_high=0.5), GSPO()),
        (GSPO(delta=1.001), GSPO()),
        (CISPO(epsilon_high=1.1), CISPO()),
        (CISPO(ratio_level="sequence"), CISPO()),
        (Clip(), GSPO()),
        (Clip(), CISPO()),
        (GSPO(), CISPO()),
        (SAPO(tau_pos=2.0), SAPO()),
        (SAPO(tau_neg=2.0), SAPO()),
        (GMPO(epsilon=0.1), GMPO(epsilon_high=0.4)),
        (GMPO(epsilon_high=0.1), GMPO()),
        (DPPO(threshold=0.01), DPPO()),
        (DPPO("kl", 0.01), DPPO("tv", 0.01)),
        (SAPO(), Clip()),
        (GMPO(), GSPO(0.4, None)),
        (DPPO(), Clip()),
    ],
)
def test_each_option_changes_the_gradient(changed, plain):
    def gradients(objective):
        return torch.stack([Case(seed).gradient(objective) for seed in range(3)])

    assert not torch.allclose(gradients(changed), gradients(plain))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Clip(epsilon=-0.1), "Clip: epsilon and epsilon_high must not be negative"),
        (lambda: Clip(epsilon=math.nan), "Clip: epsilon and epsilon_high must not be negative"),
        (lambda: Clip(epsilon_high=-0.1), "Clip: epsilon and epsilon_high must not be negative"),
        (lambda: Clip(delta=1.1), r"Clip: delta must be above 1 \+ epsilon_high = 1.2"),
        (lambda: Clip(delta=1.2), r"Clip: delta must be above 1 \+ epsilon_high = 1.2"),
        (lambda: GSPO(epsilon=-0.1), "GSPO: epsilon and epsilon_high must not be negative"),
        (lambda: CISPO(0.0), "CISPO: epsilon_high must be positive"),
        (lambda: SAPO(tau_pos=0.0), "SAPO: tau_pos and tau_neg must be positive, but are 0.0 and 1.05"),
        (lambda: SAPO(tau_neg=math.nan), "SAPO: tau_pos and tau_neg must be positive"),
        (lambda: GMPO(epsilon=-0.1), "GMPO: epsilon and epsilon_high must not be negative"),
        (lambda: GMPO(epsilon_high=-0.1), "GMPO: epsilon and epsilon_high must not be negative"),
        (lambda: DPPO("js"), "DPPO: divergence must be 'tv' or 'kl', not 'js'"),
        (lambda: DPPO(threshold=0.0), "DPPO: threshold must be positive"),
        (lambda: GSPOToken(epsilon=-0.1), "GSPOToken: epsilon and epsilon_high must not be negative"),
        (lambda: CISPO(ratio_level="word"), "CISPO: ratio_level must be 'token' or 'sequence', not 'word'"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


# -- the flat keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "same"),
    [
        ("clip", {}, Clip()),
        ("clip", {"epsilon": 0.1, "epsilon_high": 0.4, "delta": 1.5}, Clip(0.1, 0.4, 1.5)),
        ("clip", {"epsilon": 0.1, "epsilon_high": None}, Clip(0.1, None)),
        ("clip", {"ratio_level": "sequence"}, GSPO(0.2, None)),
        ("clip", {"ratio_level": "sequence", "epsilon": 0.1, "delta": 1.5}, GSPO(0.1, None, 1.5)),
        ("cispo", {}, CISPO()),
        ("cispo", {"cispo_epsilon_high": 2.0, "ratio_level": "sequence"}, CISPO(2.0, "sequence")),
    ],
)
def test_the_flat_keys_are_the_short_form_of_a_class(name, keys, same):
    objective = ShortForm(**keys).objective(name)
    assert type(objective) is type(same)
    assert vars(objective) == vars(same)


def test_a_class_takes_no_flat_keys():
    own = CISPO(2.0)
    assert ShortForm().objective(own) is own
    others = {
        "epsilon": 0.1,
        "epsilon_high": 0.2,
        "delta": 2.0,
        "ratio_level": "sequence",
        "cispo_epsilon_high": 2.0,
    }
    assert set(others) == set(OWNERS) == {field.name for field in fields(ShortForm)}
    for key, value in others.items():
        with pytest.raises(ConfigError, match=f"model.{key}: {key} belongs to .*set its options under model.objective"):
            ShortForm(**{key: value}).objective(own)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("clip", {"ratio_level": "word"}, "model: ratio_level is 'word', but must be one of 'token', 'sequence'"),
        ("ppo", {}, "model: objective is 'ppo'"),
        ("clip", {"epsilon": -0.1}, "model: epsilon"),
        ("clip", {"epsilon_high": -0.1}, "model: epsilon and epsilon_high"),
        ("clip", {"delta": 1.1}, r"model: delta must be above 1 \+ epsilon_high = 1.2"),
        ("clip", {"delta": 1.1, "ratio_level": "sequence"}, "model: delta must be above"),
        ("cispo", {"delta": 2.0}, "model: delta belongs to objective='clip'"),
        ("cispo", {"epsilon": 0.1}, "model: epsilon belongs to objective='clip', but the objective is 'cispo': remove"),
        ("cispo", {"epsilon_high": 5.0}, "model: epsilon_high belongs to objective='clip', .*: set cispo_epsilon_high"),
        ("cispo", {"cispo_epsilon_high": 0.0}, "model: cispo_epsilon_high must be positive"),
        ("clip", {"cispo_epsilon_high": 2.0}, "model: cispo_epsilon_high belongs to objective='cispo'"),
    ],
)
def test_bad_flat_keys(name, keys, message):
    with pytest.raises(ConfigError, match=message) as error:
        ShortForm(**keys).objective(name)
    assert "\n" not in str(error.value)
