"""Credit of the turns of episodes: by hand, and against the exact gradient where the policy ends its episodes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from grpo_lightning.advantages import RewardMoments, Unscaled
from grpo_lightning.algorithms.credit import EpisodeCredit, Groups, credited_rewards, groups_of
from grpo_lightning.environments import GuessNumber
from grpo_lightning.rollout import Experience, Recipe
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict

NAN = math.nan


def episodes(*rewards: Sequence[float], size: int = 2) -> Experience:
    """One episode for each list of the rewards of its turns; ``size`` of them are a group."""
    made: list[Attempt] = []
    said = Completion([1], "", FinishReason.STOP, [0.0], [0.0])
    for number, turns in enumerate(rewards):
        for turn, reward in enumerate(turns):
            verdict = Verdict(False, True, error="gone" if math.isnan(reward) else None)
            parent = None if turn == 0 else len(made) - 1
            group = str(number // size)
            attempt = Attempt(
                Prompt([]), [2], "", f"{number}", group, turn + 1, parent,
                completion=said, verdict=verdict, reward=reward,
            )  # fmt: skip
            made.append(attempt)
    recipe = Recipe("train", size, environment=GuessNumber())
    return experience_of(made, recipe, {}, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        # Rows: first turns of both episodes, second turns of both, third turn of the first. By hand.
        ("return", [1 + 0.5 * 2 + 0.25 * 4, 8 + 0.5 * 16, 3.0, 16.0, 3.0]),
        ("return_to_go", [3.0, 16.0, 2 + 0.5 * 4, 16.0, 4.0]),
        ("turn", [1.0, 8.0, 2.0, 16.0, 4.0]),
    ],
)
def test_credits_by_hand(credit: EpisodeCredit, expected: list[float]) -> None:
    rows = episodes([1, 2, 4], [8, 16])
    assert [attempt.reward for attempt in rows.attempts] == [1, 8, 2, 16, 4]
    assert credited_rewards(rows, None, credit, 0.5).tolist() == expected


@pytest.mark.parametrize("credit", ["return", "return_to_go", "turn"])
def test_nothing_is_learned_from_an_episode_that_broke(credit: EpisodeCredit) -> None:
    rows = episodes([NAN, NAN], [1, 0], [2], [3])
    credited = credited_rewards(rows, None, credit)
    assert [math.isnan(value) for value in credited.tolist()] == [a.key == "0" for a in rows.attempts]
    table = groups_of(rows, credit).table(credited)
    assert table[:, 0].isnan().sum() == 2, "neither of its turns takes part in a mean"


def test_an_episode_that_is_over_takes_part_with_what_it_has() -> None:
    rows = episodes([1, 2], [5])
    to_go = credited_rewards(rows, None, "return_to_go")
    assert groups_of(rows, "return_to_go").table(to_go).tolist() == [[3, 5], [2, 0]]
    whole = credited_rewards(rows, None, "return")
    assert groups_of(rows, "return").table(whole).tolist() == [[3, 5], [3, 5]]
    assert groups_of(rows, "return").rows(torch.tensor([[1.0, 2], [3, 4]])).tolist() == [1, 2, 3]


# -- the case of verl#7244 --------------------------------------------------------------------------------------------

# In the first turn the policy stops, for 1.2, or goes on, for 1; in the second it succeeds, for 0.5, or fails.
P_GO, P_WIN, SIZE = 0.6, 0.3, 3
KINDS: dict[str, tuple[float, list[float], list[tuple[float, float]]]] = {
    # Probability, rewards, and the score of each turn's action with respect to its logit.
    "stop": (1 - P_GO, [1.2], [(-P_GO, 0)]),
    "win": (P_GO * P_WIN, [1, 0.5], [(1 - P_GO, 0), (0, 1 - P_WIN)]),
    "fail": (P_GO * (1 - P_WIN), [1, 0.0], [(1 - P_GO, 0), (0, -P_WIN)]),
}
RETURN_GRADIENT = (P_GO * (1 - P_GO) * (1 + P_WIN * 0.5 - 1.2), P_GO * P_WIN * (1 - P_WIN) * 0.5)
"""Of ``(1 - p) 1.2 + p (1 + w / 2)`` with respect to the two logits, by hand: to go on does not pay."""
TURN_GRADIENT = (P_GO * (1 - P_GO) * (1 - 1.2), RETURN_GRADIENT[1])


def expected_gradient(advantages: Any) -> list[float]:
    """The mean of ``sum_t A_t score_t`` of an episode, exactly, over all groups that can occur."""
    total = [0.0, 0.0]
    for kinds in itertools.product(KINDS, repeat=SIZE):
        chance = math.prod(KINDS[kind][0] for kind in kinds)
        rows = episodes(*(KINDS[kind][1] for kind in kinds), size=SIZE)
        for attempt, advantage in zip(rows.attempts, advantages(rows).tolist(), strict=True):
            score = KINDS[kinds[int(attempt.key)]][2][attempt.number - 1]
            total = [sum_ + chance * advantage * part / SIZE for sum_, part in zip(total, score, strict=True)]
    return total


def ours(credit: EpisodeCredit) -> Any:
    def advantages(rows: Experience) -> torch.Tensor:
        groups = groups_of(rows, credit)
        return groups.rows(Unscaled()(groups.table(credited_rewards(rows, None, credit)), RewardMoments(0, 1)))

    return advantages


def by_turn_index(rows: Experience) -> torch.Tensor:
    """The natural construction: rewards minus the mean of those at the same turn, added up from the turn on."""
    groups = Groups(rows.group_N)
    centred_N = groups.rows(Unscaled()(groups.table(rows.reward_N), RewardMoments(0, 1)))
    return credited_rewards(rows, centred_N, "return_to_go")


@pytest.mark.parametrize(
    ("credit", "truth"), [("return", RETURN_GRADIENT), ("return_to_go", RETURN_GRADIENT), ("turn", TURN_GRADIENT)]
)
def test_the_gradient_is_unbiased_where_the_policy_ends_its_episodes(
    credit: EpisodeCredit, truth: tuple[float, float]
) -> None:
    # A mean over the group that includes the episode itself shrinks the gradient by 1 - 1/G, as in GRPO everywhere.
    assert expected_gradient(ours(credit)) == pytest.approx([part * (1 - 1 / SIZE) for part in truth], abs=1e-6)


def test_a_mean_by_turn_index_would_be_biased() -> None:
    first, second = expected_gradient(by_turn_index)
    assert first / RETURN_GRADIENT[0] != pytest.approx(1 - 1 / SIZE, rel=0.5)
    assert second / RETURN_GRADIENT[1] != pytest.approx(first / RETURN_GRADIENT[0], rel=0.2)
