"""MaxRL, pass@k and GDPO: by hand, against brute force, and against what their papers say of their expectation."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.advantages import GDPO, GroupStd, MaxRL, PassAtK, RewardMoments, Unscaled
from grpo_lightning.errors import ConfigError

NAN = math.nan
groups = st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=1, max_size=7)


def advantages(advantage, rewards: list[float]) -> list[float]:
    return advantage(torch.tensor([rewards], dtype=torch.float64))[0].tolist()


# -- MaxRL ------------------------------------------------------------------------------------------------------------


def test_maxrl_by_hand():
    assert advantages(MaxRL(), [1.0, 0.0, 0.0, 0.0]) == [3.0, -1.0, -1.0, -1.0]  # mean 1/4
    assert advantages(MaxRL(), [1.0, 1.0, 0.5, 0.0]) == [1.0, 1.0, -1.0, -1.0]  # 0.5 is no success
    assert advantages(MaxRL(0.5), [1.0, 1.0, 0.5, 0.0]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    assert advantages(MaxRL(), [1.0, NAN, 0.0, NAN]) == [1.0, 0.0, -1.0, 0.0]
    for constant in ([0.0, 0.5, 0.0], [1.0, 1.0, 1.0], [1.0, NAN, NAN]):
        assert advantages(MaxRL(), constant) == [0.0, 0.0, 0.0]


@settings(deadline=None, max_examples=50)
@given(rewards=groups)
def test_maxrl_by_loops(rewards: list[float]):
    solved = [float(reward == 1.0) for reward in rewards if not math.isnan(reward)]
    rate = statistics.fmean(solved) if solved else 0.0
    expected = [
        0.0 if math.isnan(reward) or rate in (0.0, 1.0) else ((reward == 1.0) - rate) / rate for reward in rewards
    ]
    assert advantages(MaxRL(), rewards) == pytest.approx(expected)


def expected_gradient(advantage, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The exact expectation of 1/G sum_i A_i grad log pi(y_i) over all groups, the logits, and the success rate."""
    logits = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logprobs, rewards = logits.log_softmax(0), [0.0, 1.0, 0.0]
    surrogate = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product(range(3), repeat=group):
        probability = math.prod(logprobs[y].exp().item() for y in drawn)
        weights = advantages(advantage, [rewards[y] for y in drawn])
        surrogate = surrogate + probability * sum(w * logprobs[y] for w, y in zip(weights, drawn, strict=True)) / group
    return torch.autograd.grad(surrogate, logits, retain_graph=True)[0], logits, logprobs[1].exp()


@pytest.mark.parametrize("group", [2, 3, 5])
def test_the_expected_gradient_of_maxrl_is_that_of_truncated_maximum_likelihood(group: int):
    # log p = - sum_k (1 - p)^k / k; with the mean subtracted, a group of G gives the first G - 1 terms.
    gradient, logits, p = expected_gradient(MaxRL(), group)
    objective = -sum((1 - p) ** k / k for k in range(1, group))
    torch.testing.assert_close(gradient, torch.autograd.grad(objective, logits)[0])


def test_maxrl_weighs_a_rarely_solved_prompt_more_than_reinforce_does():
    rare, frequent = [1.0] + [0.0] * 7, [1.0] * 7 + [0.0]
    ratio = {
        kind: advantages(kind(), rare)[0] / advantages(kind(), frequent)[0] for kind in (MaxRL, GroupStd, Unscaled)
    }
    assert ratio[MaxRL] == pytest.approx(49)  # (7/8)/(1/8) against (1/8)/(7/8)
    assert ratio[MaxRL] > ratio[GroupStd]
    assert ratio[MaxRL] > ratio[Unscaled]


# -- pass@k -----------------------------------------------------------------------------------------------------------


def by_subsets(rewards: list[float], k: int) -> list[float]:
    """Full sampling: each subset of k is one sample with its best reward, normalised over all subsets."""
    valid = [index for index, reward in enumerate(rewards) if not math.isnan(reward)]
    subsets = list(itertools.combinations(valid, k))
    best = [float(any(rewards[index] == 1.0 for index in subset)) for subset in subsets]
    result = [0.0] * len(rewards)
    if not subsets or len(set(best)) < 2:
        return result
    mean, sigma = statistics.fmean(best), statistics.pstdev(best)
    for index in valid:
        result[index] = statistics.fmean((b - mean) / sigma for b, s in zip(best, subsets, strict=True) if index in s)
    return result


@settings(deadline=None, max_examples=100)
@given(rewards=groups, k=st.integers(1, 4))
def test_pass_at_k_is_the_mean_over_all_subsets(rewards: list[float], k: int):
    assert advantages(PassAtK(k), rewards) == pytest.approx(by_subsets(rewards, k), abs=1e-9)


def test_pass_at_k_by_hand():
    # Four completions, one right, pairs: R = 1 - 3/6 = 1/2, sigma = 1/2; of the pairs of a wrong one 2 of 3 are wrong.
    assert advantages(PassAtK(2), [1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    # Three right of four: every pair holds a right one, and nothing is left to learn.
    assert advantages(PassAtK(2), [1.0, 1.0, 1.0, 0.0]) == [0.0] * 4
    assert advantages(PassAtK(2, success=0.5), [1.0, 0.5, 0.5, 0.0]) == [0.0] * 4


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0]])
def test_pass_at_1_is_grpo_with_the_std_of_the_population(rewards: list[float]):
    size = len(rewards)
    grpo = [a * math.sqrt(size / (size - 1)) for a in advantages(GroupStd(0.0), rewards)]
    assert advantages(PassAtK(1), rewards) == pytest.approx(grpo)


def test_pass_at_k_needs_more_completions_than_k():
    assert PassAtK(8).smallest_group == 9
    assert MaxRL().smallest_group == GDPO().smallest_group == 2


# -- GDPO -------------------------------------------------------------------------------------------------------------

CORRECT = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
SHORT = [[0.0, 0.2, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]]


def gdpo(advantage: GDPO, combined=None, **separate: list[list[float]]) -> torch.Tensor:
    tensors = {name: torch.tensor(rewards, dtype=torch.float64) for name, rewards in separate.items()}
    rewards_BG = sum(tensors.values()) if combined is None else torch.tensor(combined, dtype=torch.float64)
    return advantage(advantage.checked_scores(rewards_BG, tensors))


@pytest.mark.parametrize("weights", [None, {"correct": 1.0, "short": 0.25}])
def test_gdpo_by_loops(weights: dict[str, float] | None):
    used = weights or {"correct": 1.0, "short": 1.0}
    scores = [[0.0] * 4 for _ in CORRECT]
    for name, rewards in (("correct", CORRECT), ("short", SHORT)):
        for row, group in enumerate(rewards):
            for place, reward in enumerate(group):
                scale = statistics.stdev(group) + 1e-4
                scores[row][place] += used[name] * (reward - statistics.fmean(group)) / scale
    everything = [score for group in scores for score in group]
    mean, std = statistics.fmean(everything), statistics.stdev(everything) + 1e-4
    expected = torch.tensor([[(score - mean) / std for score in group] for group in scores], dtype=torch.float64)
    torch.testing.assert_close(gdpo(GDPO(weights), correct=CORRECT, short=SHORT), expected)


def test_gdpo_of_one_reward_is_grpo_up_to_the_scale_of_the_step():
    ratio = gdpo(GDPO(), correct=CORRECT) / GroupStd()(torch.tensor(CORRECT, dtype=torch.float64))
    torch.testing.assert_close(ratio, ratio[0, 0].expand(2, 4))


def test_gdpo_tells_combinations_with_equal_sums_apart_and_grpo_does_not():
    # By hand: the sums are 1, 1, 0, 0 and 1 again. The second reward is rarer, so its completion stands out more.
    first, second = [[1.0, 0.0, 0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0, 0.0, 0.0]]
    got = gdpo(GDPO(), first=first, second=second)[0]
    assert got[1] > got[0] == got[4] > 0
    whole = GroupStd()(torch.tensor(first) + torch.tensor(second))[0]
    assert whole[0] == whole[1] == whole[4]


def test_gdpo_has_exact_zeros_where_a_group_has_no_signal_and_skips_missing_rewards():
    alone = gdpo(GDPO(), combined=[[2, 1]], a=[[1, 0]], b=[[1, 1]])
    got = gdpo(GDPO(), combined=[[1, 1, NAN], [2, 1, 1]], a=[[1, 1, NAN], [1, 0, NAN]], b=[[0, 0, NAN], [1, 1, 1]])
    assert got[0].tolist() == [0.0, 0.0, 0.0]
    assert got[1, 2] == 0
    torch.testing.assert_close(got[1, :2] / got[1, 0], alone[0] / alone[0, 0])


def test_gdpo_without_a_constant_in_its_denominators_is_zero_where_no_step_has_a_signal():
    equal = [[1.0, 1.0], [0.0, 0.0]]
    assert not gdpo(GDPO(eps=0.0), first=equal, second=equal).any()


def test_the_std_of_all_ranks_replaces_the_local_one():
    scores_BG = torch.tensor([[1.0, -1.0]])
    whole = GDPO()(scores_BG, RewardMoments(torch.tensor(0.0), torch.tensor(2.0)))
    torch.testing.assert_close(whole, scores_BG / 2.0001)


def test_gdpo_takes_verifiers_or_the_parts_of_one():
    assert GDPO().rewards_taken(["MathVerifier", "FormatVerifier", "MathVerifier/short"]) == [
        "MathVerifier", "FormatVerifier",
    ]  # fmt: skip
    assert GDPO({"a": 1.0, "b/c": 2.0}).rewards_taken(["a", "b", "b/c"]) == ["a", "b/c"]
    assert MaxRL().rewards_taken(["a", "b"]) == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaxRL(NAN), "MaxRL: success must be a finite number"),
        (lambda: PassAtK(0), "PassAtK: k must be at least 1, but is 0"),
        (lambda: PassAtK(2, math.inf), "PassAtK: success must be a finite number"),
        (lambda: GDPO(eps=-1.0), "GDPO: eps must not be negative"),
        (lambda: GDPO({"a": NAN}), "GDPO: the weight of 'a' must be a finite number"),
        (lambda: GDPO().rewards_taken([]), "GDPO: it normalises several rewards, and this run has none: give several"),
        (lambda: GDPO({"a": 1.0}).rewards_taken(["a", "b"]), "GDPO: it normalises several rewards"),
        (lambda: GDPO({"c": 1.0}).rewards_taken(["a", "b"]), "GDPO: weights names the reward 'c', but .* are a, b"),
    ],
)
def test_bad_options(build, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


class Summed(GDPO):
    def scores(self, rewards_BG, separate_BG):
        return rewards_BG.sum(1)


class Spoiled(GDPO):
    def scores(self, rewards_BG, separate_BG):
        return rewards_BG / 0


def test_scores_that_break_the_contract_are_refused():
    for kind, message in (
        (Summed, r"Summed.scores must return .* shape \(1, 2\)"),
        (Spoiled, "Spoiled.scores returned NaN"),
    ):
        with pytest.raises(ConfigError, match=message):
            kind().checked_scores(torch.tensor([[1.0, 0.0]]), {})
