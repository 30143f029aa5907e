"""Verifiers made of verifiers: their arithmetic, their logic, and what errors and abstentions do to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_lightning.__main__ import main
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.scoring import Scoring, reward_names
from grpo_lightning.types import Completion, FinishReason, Prompt, Sample, Turn, Verdict
from grpo_lightning.verifiers import (
    AllOf,
    AnyOf,
    ByColumn,
    FormatVerifier,
    FunctionVerifier,
    LengthPenalty,
    MathVerifier,
    RepetitionPenalty,
    Verifier,
    WeightedVerifier,
    judge,
)
from grpo_lightning.verifiers.base import rewarded
from grpo_lightning.verifiers.together import combine

ROOT = Path(__file__).parents[2]

CORRECT = Verdict(True, True)
FORMAT = Verdict(False, True, "The value is wrong.")
WRONG = Verdict(False, False, "Nothing was found.")
HALF = Verdict(False, True, score=0.5)
ABSTAINED = Verdict(False, False, abstained=True)
BROKEN = Verdict(False, False, error="the checker is gone")
# An error counts as one whatever else the verdict says.
SHADY = Verdict(True, True, score=1.0, error="the checker is gone")
NAN = Verdict(True, True, score=math.nan)


class Scripted(Verifier):
    """Says of row n what it was told to; keeps the sizes of the batches."""

    def __init__(self, *verdicts: Verdict, **rewards: float) -> None:
        super().__init__(**rewards)
        self.verdicts = verdicts
        self.batches: list[int] = []

    def verify(self, sample: Sample) -> Verdict:
        return self.verdicts[sample.metadata["row"]]

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.batches.append(len(samples))
        return super().verify_batch(samples)


class Other(Scripted):
    """The same under another name."""


def rows(count: int, **columns: list[Any]) -> list[Sample]:
    return [
        Sample("", "", metadata={"row": row, **{name: column[row] for name, column in columns.items()}})
        for row in range(count)
    ]


def one(verifier: Verifier) -> Verdict:
    (verdict,) = judge(verifier, rows(1))
    return verdict


def is_broken(verdict: Verdict) -> bool:
    return verdict.error is not None or (verdict.score is not None and not math.isfinite(verdict.score))


VERDICTS = st.one_of(
    st.sampled_from([CORRECT, FORMAT, WRONG, HALF, ABSTAINED, BROKEN, SHADY, NAN]),
    st.floats(-2, 2).map(lambda number: Verdict(number >= 1, number >= 0, score=number)),
)
GOOD_VERDICTS = st.sampled_from([CORRECT, FORMAT, WRONG, HALF, ABSTAINED])


# -- the weighted sum --------------------------------------------------------------------------------------------------


def test_the_sum_by_hand() -> None:
    total = WeightedVerifier(
        {"math": Scripted(CORRECT, FORMAT, WRONG, HALF), "format": Scripted(WRONG, CORRECT, CORRECT, CORRECT)},
        {"math": 0.8, "format": 0.2},
    )
    judged = rewarded(total, rows(4))
    assert [reward for _, reward in judged] == pytest.approx([0.8, 0.8 * 0.5 + 0.2, 0.2, 0.4 + 0.2])
    assert [dict(verdict.parts) for verdict, _ in judged] == [
        {"math": 1.0, "format": 0.0},
        {"math": 0.5, "format": 1.0},
        {"math": 0.0, "format": 1.0},
        {"math": 0.5, "format": 1.0},
    ]
    assert [verdict.correct for verdict, _ in judged] == [False] * 4


@given(
    verdicts=st.lists(st.tuples(VERDICTS, st.floats(-3, 3), st.booleans()), min_size=1, max_size=4),
)
def test_the_sum_is_the_weighted_sum(verdicts: list[tuple[Verdict, float, bool]]) -> None:
    names = [f"p{index}" for index in range(len(verdicts))]
    parts: dict[str, Verifier] = {
        name: Scripted(verdict, reward_format=0.3) for name, (verdict, _, _) in zip(names, verdicts, strict=True)
    }
    weights = {name: weight for name, (_, weight, _) in zip(names, verdicts, strict=True)}
    required = [name for name, (_, _, needed) in zip(names, verdicts, strict=True) if needed] or names
    verdict, reward = rewarded(WeightedVerifier(parts, weights, required), rows(1))[0]

    said = {name: verdict for name, (verdict, _, _) in zip(names, verdicts, strict=True)}
    deciding = [said[name] for name in required if not said[name].abstained]
    if any(is_broken(verdict) for verdict in said.values()):
        assert verdict.error is not None
    elif not deciding:
        assert verdict.abstained
    else:
        by_hand = sum(weights[name] * parts[name].reward(said[name]) for name in names if not said[name].abstained)
        assert reward == pytest.approx(by_hand)
        assert verdict.correct == all(verdict.correct for verdict in deciding)
        assert verdict.format_valid == all(verdict.format_valid for verdict in deciding)
    assert math.isnan(reward) == (not verdict.judged)


def test_without_weights_each_part_counts_once() -> None:
    parts: dict[str, Verifier] = {"a": Scripted(CORRECT), "b": Scripted(HALF)}
    assert one(WeightedVerifier(parts)).score == 1.5


def test_the_parts_rewards_are_their_own() -> None:
    total = WeightedVerifier({"a": Scripted(FORMAT, reward_format=0.1)}, {"a": 10})
    assert one(total).score == pytest.approx(1)


def test_required_parts_decide_what_is_correct() -> None:
    parts: dict[str, Verifier] = {"math": Scripted(CORRECT), "format": Scripted(WRONG), "watched": Scripted(WRONG)}
    weights = {"math": 1.0, "format": 0.1, "watched": 0.0}
    assert not one(WeightedVerifier(parts, weights)).correct
    verdict = one(WeightedVerifier(parts, weights, required=["math"]))
    assert (verdict.correct, verdict.format_valid) == (True, True)
    assert not one(WeightedVerifier(parts, weights, required=["math", "watched"])).correct
    assert one(WeightedVerifier(parts, {"math": 1, "format": -1, "watched": 0})).correct, "only weights above 0"


def test_a_sum_of_rewards_alone_is_one() -> None:
    alone = Verdict(False, False, score=0.3, reward_alone=True)
    parts: dict[str, Verifier] = {"right": Scripted(CORRECT), "brief": Scripted(alone)}
    for required, is_alone in ((None, True), (["right"], False)):
        (verdict,) = WeightedVerifier(parts, required=required).verify_batch([Sample("", "", metadata={"row": 0})])
        assert verdict.reward_alone is is_alone
    assert combine({"a": (CORRECT, 1.0), "b": (alone, 0.3)})[0].reward_alone
    assert not combine({"a": (CORRECT, 1.0)})[0].reward_alone


def test_a_watched_part_gives_a_curve_but_no_reward_and_no_feedback() -> None:
    parts: dict[str, Verifier] = {"math": Scripted(HALF), "watched": Scripted(WRONG, reward_wrong=7)}
    verdict = one(WeightedVerifier(parts, {"math": 1, "watched": 0}))
    assert (verdict.score, verdict.parts, verdict.feedback) == (0.5, {"math": 0.5, "watched": 7}, "")


def test_feedback_is_that_of_the_parts_each_once() -> None:
    parts: dict[str, Verifier] = {
        "a": Scripted(FORMAT),
        "b": Scripted(CORRECT),
        "c": Scripted(WRONG),
        "d": Scripted(WRONG),
    }
    assert one(WeightedVerifier(parts)).feedback == "The value is wrong. Nothing was found."


@pytest.mark.parametrize("broken", [BROKEN, SHADY])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_broken_part_breaks_the_sum(broken: Verdict, weight: float) -> None:
    verdict = one(WeightedVerifier({"a": Scripted(CORRECT), "b": Scripted(broken)}, {"a": 1, "b": weight}))
    assert verdict.error == "b: the checker is gone"
    assert not verdict.correct
    assert verdict.parts == pytest.approx({"a": 1, "b": math.nan}, nan_ok=True)


def test_every_error_is_named() -> None:
    verdict = one(WeightedVerifier({"a": Scripted(BROKEN), "b": Scripted(NAN), "c": Scripted()}))
    assert verdict.error == "a: the checker is gone; b: a reward of nan; c: IndexError: tuple index out of range"


@pytest.mark.parametrize("reward", [1e8 + 1, -1e20, 1e39])
def test_a_reward_that_float32_does_not_resolve_is_an_error(reward: float) -> None:
    verdict, combined = combine({"a": (CORRECT, reward)})
    assert math.isnan(combined)
    assert verdict.error == f"a reward of {reward:g} is beyond 1e+06: divide it, or subtract a constant"
    assert combine({"a": (CORRECT, 1e6)}) == (CORRECT, 1e6)


def test_parts_that_abstain_count_neither_way() -> None:
    parts: dict[str, Verifier] = {"math": Scripted(ABSTAINED), "code": Scripted(CORRECT), "length": Scripted(HALF)}
    verdict = one(WeightedVerifier(parts, required=["math", "code"]))
    assert (verdict.correct, verdict.score) == (True, 1.5)
    assert verdict.parts == pytest.approx({"math": math.nan, "code": 1, "length": 0.5}, nan_ok=True)
    assert one(WeightedVerifier(parts, required=["math"])).abstained, "a length is no judgement"


def test_sums_of_sums_name_the_parts_of_their_parts() -> None:
    style = WeightedVerifier({"format": Scripted(CORRECT), "length": Scripted(HALF)}, {"format": 0.5, "length": 0.5})
    total = WeightedVerifier({"math": Scripted(CORRECT), "style": style})
    verdict = one(total)
    assert verdict.parts == {"math": 1, "style": 0.75, "style/format": 1, "style/length": 0.5}
    assert total.part_names == tuple(verdict.parts)


# -- all of, any of ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "all_of", "any_of"),
    [
        ([CORRECT], CORRECT, CORRECT),
        ([CORRECT, CORRECT], CORRECT, CORRECT),
        ([CORRECT, FORMAT], FORMAT, CORRECT),
        ([CORRECT, WRONG], WRONG, CORRECT),
        ([FORMAT, WRONG], Verdict(False, False, "The value is wrong. Nothing was found."),
         Verdict(False, True, "The value is wrong. Nothing was found.")),
        ([WRONG, WRONG], WRONG, WRONG),
        ([CORRECT, ABSTAINED], CORRECT, CORRECT),
        ([WRONG, ABSTAINED], WRONG, WRONG),
        ([ABSTAINED, ABSTAINED], ABSTAINED, ABSTAINED),
        ([CORRECT, BROKEN], "Scripted2: the checker is gone", CORRECT),
        ([WRONG, BROKEN], "Scripted2: the checker is gone", "Scripted2: the checker is gone"),
        ([ABSTAINED, BROKEN], "Scripted2: the checker is gone", "Scripted2: the checker is gone"),
        ([WRONG, SHADY], "Scripted2: the checker is gone", "Scripted2: the checker is gone"),
    ],
)  # fmt: skip
def test_the_logic(verdicts: list[Verdict], all_of: Verdict | str, any_of: Verdict | str) -> None:
    for composite, expected in ((AllOf, all_of), (AnyOf, any_of)):
        if isinstance(expected, str):
            expected = Verdict(False, False, error=expected.replace("Scripted2", "Other"))
        parts: list[Verifier] = [Scripted(verdicts[0]), *(Other(verdict) for verdict in verdicts[1:])]
        assert replace(one(composite(parts)), parts={}) == expected


def test_all_of_asks_for_nothing_of_those_that_are_content() -> None:
    content = Verdict(True, True, "It could be shorter.")
    assert one(AllOf([Scripted(content), Scripted(WRONG)])).feedback == "Nothing was found."


@given(st.lists(VERDICTS, min_size=1, max_size=4))
def test_no_error_becomes_a_reward(verdicts: list[Verdict]) -> None:
    parts: list[Verifier] = [Scripted(verdict) for verdict in verdicts]
    found = any(verdict.correct for verdict in verdicts if verdict.judged)
    broke = any(verdict.error for verdict in verdicts)
    assert (one(AllOf(parts)).error is not None) == broke
    assert (one(AnyOf(parts)).error is not None) == (broke and not found)
    assert one(AnyOf(parts)).correct == found


@given(st.lists(GOOD_VERDICTS, min_size=1, max_size=4))
def test_all_of_is_never_kinder_than_any_of(verdicts: list[Verdict]) -> None:
    parts: list[Verifier] = [Scripted(verdict) for verdict in verdicts]
    strict, kind = one(AllOf(parts)), one(AnyOf(parts))
    assert strict.abstained == kind.abstained
    assert strict.correct <= kind.correct
    assert strict.format_valid <= kind.format_valid
    assert strict.correct <= strict.format_valid
    assert kind.correct <= kind.format_valid


@pytest.mark.parametrize("composite", [AllOf, AnyOf])
def test_the_logic_reports_its_parts_by_name_or_by_class(composite: Any) -> None:
    style = WeightedVerifier({"tags": Scripted(CORRECT), "length": Scripted(HALF)})
    named = composite({"answer": Scripted(FORMAT, reward_format=0.3), "style": style})
    assert named.part_names == ("answer", "style", "style/tags", "style/length")
    assert one(named).parts == {"answer": 0.3, "style": 1.5, "style/tags": 1, "style/length": 0.5}
    listed = composite([Scripted(CORRECT), Other(WRONG), Scripted(ABSTAINED), Scripted(NAN), Other(BROKEN)])
    assert listed.part_names == ("Scripted", "Other", "Scripted2", "Scripted3", "Other2")
    by_hand = {"Scripted": 1, "Other": 0, "Scripted2": math.nan, "Scripted3": math.nan, "Other2": math.nan}
    assert one(listed).parts == pytest.approx(by_hand, nan_ok=True)


@pytest.mark.parametrize("composite", [AllOf, AnyOf])
def test_the_rewards_of_the_logic_are_its_own(composite: Any) -> None:
    part = Scripted(CORRECT, FORMAT, WRONG, HALF, reward_correct=9, reward_wrong=9)
    assert [reward for _, reward in rewarded(composite([part]), rows(4))] == [1, 0.5, 0, 0.5]
    own = composite([part], reward_correct=3.0, reward_format=2.0, reward_wrong=-1.0)
    assert [reward for _, reward in rewarded(own, rows(4))] == [3, 2, -1, 2]


# -- by column ---------------------------------------------------------------------------------------------------------


def test_each_row_goes_to_its_verifier_in_one_batch() -> None:
    math_part, code_part = Scripted(*[CORRECT] * 5, reward_correct=2), Scripted(*[FORMAT] * 5)
    idle = Scripted()
    verifier = ByColumn("task", {"math": math_part, "code": code_part, "idle": idle})
    judged = rewarded(verifier, rows(5, task=["code", "math", "math", "code", "math"]))
    assert [reward for _, reward in judged] == [0.5, 2, 2, 0.5, 2]
    assert [verdict.correct for verdict, _ in judged] == [False, True, True, False, True]
    assert [dict(verdict.parts) for verdict, _ in judged[:2]] == [{"code": 0.5}, {"math": 2}]
    assert (math_part.batches, code_part.batches, idle.batches) == ([3], [2], [])
    assert judged[0][0].feedback == "The value is wrong."


def test_a_row_that_no_verifier_is_for_is_an_error() -> None:
    verifier = ByColumn("task", {"math": Scripted(CORRECT, CORRECT), "1": Scripted(CORRECT, CORRECT)})
    unknown, number = judge(verifier, rows(2, task=["maths", 1]))
    assert unknown.error == "the column 'task' is 'maths', but there are verifiers only for math, 1"
    assert number.correct, "a number in the data is matched by its text"
    (document,) = judge(verifier, rows(1, task=["m" * 10_000]))
    assert len(document.error or "") < 200
    (missing,) = judge(verifier, rows(1))
    assert missing.error == "the row has no column 'task' that names one of math, 1"
    (none,) = judge(ByColumn("task", {"None": Scripted(CORRECT)}), rows(1))
    assert none.error is not None


def test_what_the_chosen_verifier_says_is_passed_on() -> None:
    for verdict in (BROKEN, ABSTAINED, NAN):
        ((passed, reward),) = rewarded(ByColumn("row", {"0": Scripted(verdict)}), rows(1))
        assert math.isnan(reward)
        assert (passed.error is not None, passed.abstained) == (verdict != ABSTAINED, verdict == ABSTAINED)


def test_the_curves_of_nested_parts() -> None:
    inner = WeightedVerifier({"answer": Scripted(CORRECT), "format": Scripted(HALF)})
    verifier = ByColumn("row", {"0": inner, "1": Scripted(WRONG)})
    assert verifier.part_names == ("0", "0/answer", "0/format", "1")
    assert one(verifier).parts == {"0": 1.5, "0/answer": 1, "0/format": 0.5}


# -- of all composites -------------------------------------------------------------------------------------------------

COMPOSITES: list[Callable[[Verifier, Verifier], Verifier]] = [
    lambda one, other: WeightedVerifier({"one": one, "other": other}, {"one": 0.7, "other": 0.3}),
    lambda one, other: AllOf([one, other]),
    lambda one, other: AnyOf([one, other]),
    lambda one, other: ByColumn("to", {"one": one, "other": other}),
    lambda one, other: AllOf([AnyOf([one, other]), WeightedVerifier({"one": one}), other]),
]
composites = pytest.mark.parametrize("composite", COMPOSITES, ids=["sum", "all", "any", "column", "nested"])


@composites
@given(data=st.data(), verdicts=st.lists(st.tuples(VERDICTS, VERDICTS), max_size=6))
def test_the_order_of_samples_does_not_matter(
    composite: Any, data: st.DataObject, verdicts: list[tuple[Verdict, Verdict]]
) -> None:
    verifier = composite(Scripted(*(pair[0] for pair in verdicts)), Scripted(*(pair[1] for pair in verdicts)))
    samples = rows(len(verdicts), to=[("one", "other", "none")[row % 3] for row in range(len(verdicts))])
    order = data.draw(st.permutations(range(len(verdicts))))
    straight, permuted = judge(verifier, samples), judge(verifier, [samples[row] for row in order])
    assert repr(permuted) == repr([straight[row] for row in order])
    alone = [judge(verifier, [sample])[0] for sample in samples]
    assert repr(alone) == repr(straight), "and neither do the neighbours"


@composites
def test_parts_get_whole_batches(composite: Any) -> None:
    one, other = Scripted(*[CORRECT] * 6), Scripted(*[WRONG] * 6)
    judge(composite(one, other), rows(6, to=["one", "other"] * 3))
    assert set(one.batches) | set(other.batches) == ({3} if composite is COMPOSITES[3] else {6})
    if composite is not COMPOSITES[4]:
        assert len(one.batches) == len(other.batches) == 1


@composites
def test_a_composite_is_slow_if_a_part_is(composite: Any) -> None:
    quick, slow = (FunctionVerifier(lambda sample: 1.0, slow=slow) for slow in (False, True))
    assert not composite(quick, quick).slow
    assert composite(quick, slow).slow
    assert composite(slow, quick).slow


@composites
def test_a_part_whose_code_raises_breaks_no_neighbour_and_stops_nothing(composite: Any) -> None:
    class Gone(Verifier):
        def verify(self, sample: Sample) -> Verdict:
            raise OSError("the checker is gone")

    verdicts = judge(composite(Gone(), Scripted(WRONG, WRONG)), rows(2, to=["one", "other"]))
    assert "OSError: the checker is gone" in str(verdicts[0].error)
    assert verdicts[1].judged == (composite is COMPOSITES[3])


@composites
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_gets_a_verdict(composite: Any, text: str) -> None:
    real = WeightedVerifier(
        {
            "answer": MathVerifier(),
            "format": FormatVerifier(pattern=r"(?s).*#### [0-9]+"),
            "length": LengthPenalty(20, 10, "characters"),
            "repetition": RepetitionPenalty(2, "words"),
        },
    )
    (verdict,) = judge(composite(real, FormatVerifier(["think"])), [Sample("", text, "42", {"to": "one"})])
    assert verdict.error is None


@composites
@settings(max_examples=30, deadline=None)
@given(gold=st.integers(10**9, 10**12).map(str), text=st.sampled_from(["#### 7", "no", "<think>#### 7", ""]))
def test_the_gold_answer_is_in_no_feedback(composite: Any, gold: str, text: str) -> None:
    real = WeightedVerifier({"answer": MathVerifier(), "length": LengthPenalty(1, 0, "characters")})
    verifier = composite(real, FormatVerifier(["think"]))
    (verdict,) = judge(verifier, [Sample("", text, gold, {"to": "one"})])
    assert verdict.judged
    assert verdict.feedback
    assert gold not in verdict.feedback


# -- rewards of rollouts -----------------------------------------------------------------------------------------------


def rollout_rewards(verifiers: dict[str, Verifier], task: str = "math") -> tuple[float, str | None, dict[str, float]]:
    prompt = Prompt([{"role": "user", "content": "6 * 7?"}], "42", {"task": task, "row": 0})
    completion = Completion([1, 2, 3], "#### 42", FinishReason.STOP, [-1.0] * 3, [-1.0] * 3)
    with Scoring(verifiers, [Turn(prompt, [1])]) as scoring:
        (rollout,) = scoring.attempts([0], [completion])
    assert set(reward_names(verifiers)) <= set(rollout.rewards_by_verifier)
    return rollout.reward, rollout.verdict.error, dict(rollout.rewards_by_verifier)


def test_a_rollout_has_the_rewards_of_all_parts_by_name() -> None:
    total = WeightedVerifier({"math": MathVerifier(), "length": LengthPenalty(4, 2)})
    assert rollout_rewards({"WeightedVerifier": total}) == (
        0.5,
        None,
        {"WeightedVerifier": 0.5, "math": 1, "length": -0.5},
    )
    several = {"WeightedVerifier": total, "MathVerifier": MathVerifier()}
    assert rollout_rewards(several)[2] == {
        "WeightedVerifier": 0.5, "MathVerifier": 1, "WeightedVerifier/math": 1, "WeightedVerifier/length": -0.5,
    }  # fmt: skip


def test_every_rollout_has_the_same_names() -> None:
    verifier = ByColumn("task", {"math": MathVerifier(), "broken": Scripted(BROKEN), "raises": Scripted()})
    for task, reward in (("math", 1.0), ("broken", math.nan), ("raises", math.nan), ("unknown", math.nan)):
        given_reward, error, by_name = rollout_rewards({"ByColumn": verifier}, task)
        assert given_reward == pytest.approx(reward, nan_ok=True)
        assert (error is None) == (task == "math")
        assert list(by_name) == ["ByColumn", "math", "broken", "raises"]
        assert by_name["math"] == pytest.approx(reward, nan_ok=True)


def test_verifiers_that_abstain_leave_the_mean_to_the_others() -> None:
    verifiers: dict[str, Verifier] = {"a": Scripted(ABSTAINED), "b": Scripted(replace(CORRECT, score=0.25))}
    reward, error, by_name = rollout_rewards(verifiers)
    assert (reward, error) == (0.25, None)
    assert math.isnan(by_name["a"])
    reward, error, _ = rollout_rewards({"a": Scripted(ABSTAINED)})
    assert math.isnan(reward)
    assert error == "all verifiers abstained on this sample: a"


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: WeightedVerifier({}), "WeightedVerifier.parts: give at least one verifier"),
        (lambda: AllOf([]), "AllOf.verifiers: give at least one verifier"),
        (lambda: AnyOf({}), "AnyOf.verifiers: give at least one verifier"),
        (
            lambda: AnyOf({"errors": Scripted()}),
            "AnyOf.verifiers: 'errors' cannot be a name: reward/errors is another curve",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted()}, {"a": 1, "b": 1}),
            "WeightedVerifier.weights: there is no part 'b' in a",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted()}, {"a": math.nan}),
            "WeightedVerifier.weights: 'a' needs a number, not nan",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted(), "b": Scripted()}, {"a": 1}),
            "WeightedVerifier.weights: the part 'b' has no weight; give 0 to only log it",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted()}, required=["b"]),
            "WeightedVerifier.required: there is no part 'b' in a",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted()}, required=[]),
            "WeightedVerifier.required: name at least one part, or give one a weight above 0",
        ),
        (
            lambda: WeightedVerifier({"a": Scripted()}, {"a": 0}),
            "WeightedVerifier.required: name at least one part, or give one a weight above 0",
        ),
        (
            lambda: WeightedVerifier({"mean": Scripted()}),
            "WeightedVerifier.parts: 'mean' cannot be a name: reward/mean is another curve",
        ),
        (
            lambda: WeightedVerifier({"unsafe_sandbox": Scripted()}),
            "WeightedVerifier.parts: 'unsafe_sandbox' cannot be a name: reward/unsafe_sandbox is another curve",
        ),
        (
            lambda: WeightedVerifier({"a/b": Scripted(), "a": WeightedVerifier({"b": Scripted()})}),
            "WeightedVerifier.parts: two parts would share the curve reward/a/b; rename one of them",
        ),
        (lambda: ByColumn("task", {}), "ByColumn.verifiers: give at least one verifier"),
        (
            lambda: ByColumn("task", {"errors": Scripted()}),
            "ByColumn.verifiers: 'errors' cannot be a name: reward/errors is another curve",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(build: Any, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value) == text


CONFIG = r"""
verifiers:
- class_path: WeightedVerifier
  init_args:
    parts:
      math: {class_path: MathVerifier, init_args: {formats: [hash, bare]}}
      format: {class_path: FormatVerifier, init_args: {pattern: '(?s).*#### -?\d+\s*'}}
      length: {class_path: LengthPenalty, init_args: {max_length: 40, buffer: 10}}
      repetition: {class_path: RepetitionPenalty, init_args: {ngram_size: 8, unit: characters}}
      own: {class_path: FunctionVerifier, init_args: {function: math.isqrt, style: sample, correct_at: 0.5}}
    weights: {math: 0.8, format: 0.2, length: 0.1, repetition: 0.1, own: 0}
    required: [math]
- class_path: ByColumn
  init_args:
    column: task
    verifiers:
      math:
        class_path: AllOf
        init_args: {verifiers: [{class_path: MathVerifier}, {class_path: FormatVerifier, init_args: {tags: [think]}}]}
      other: {class_path: AnyOf, init_args: {verifiers: {math: MathVerifier}, reward_format: 0.1}}
"""


def parsed_verifiers(path: Path) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--verifiers", type=list[Verifier])
    return parser, parser.parse_args(["--config", str(path)])


def test_all_of_them_by_their_short_names_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    parser, parsed = parsed_verifiers(tmp_path / "config.yaml")
    total, by_column = parser.instantiate(parsed).verifiers
    assert total.part_names == ("math", "format", "length", "repetition", "own")
    assert (total.weights["math"], total.required) == (0.8, ["math"])
    assert isinstance(total.parts["own"], FunctionVerifier)
    assert total.parts["math"].formats == ("hash", "bare")
    assert isinstance(by_column.verifiers["math"].verifiers["FormatVerifier"], FormatVerifier)
    assert by_column.verifiers["other"].reward_format == 0.1
    assert by_column.verifiers["other"].part_names == ("math",)
    assert by_column.part_names == ("math", "math/MathVerifier", "math/FormatVerifier", "other", "other/math")
    # The saved config of a run builds the same again.
    (tmp_path / "saved.yaml").write_text(parser.dump(parsed))
    assert parser.parse_args(["--config", str(tmp_path / "saved.yaml")]).verifiers == parsed.verifiers


def test_a_weight_without_a_part_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("own: 0}", "owl: 0}"))
    parser, parsed = parsed_verifiers(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"WeightedVerifier\.weights: there is no part 'owl' in math, format, length"):
        parser.instantiate(parsed)


def quickstart(tmp_path: Path, verifiers: str) -> None:
    options = {
        "warm_start": "null", "model.init_args.policy.init": "random", "model.init_args.verifiers": verifiers,
        "trainer.default_root_dir": tmp_path, "trainer.max_steps": 1, "trainer.val_check_interval": 1,
        "trainer.limit_val_batches": 1, "trainer.enable_progress_bar": "false", "data.val_batch_size": 4,
        "data.task.init_args.train_size": 40,
        "data.prompts_per_step": 2, "data.group_size": 2, "data.sampling.max_new_tokens": 8,
    }  # fmt: skip
    keys = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    main(["fit", "--config", "configs/quickstart.yaml", *keys])


def test_a_run_takes_a_weighted_sum_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parts = (
        "{math: {class_path: MathVerifier}, length: {class_path: LengthPenalty, init_args: {max_length: 8, buffer: 4}}}"
    )
    init_args = f"{{parts: {parts}, weights: {{math: 1, length: 0.2}}}}"
    quickstart(tmp_path, f"[{{class_path: WeightedVerifier, init_args: {init_args}}}]")
    (saved,) = tmp_path.glob("*/*/config.yaml")
    (verifier,) = yaml.safe_load(saved.read_text())["model"]["init_args"]["verifiers"]
    assert verifier["init_args"]["weights"] == {"math": 1.0, "length": 0.2}


def test_the_parts_have_curves_in_training_and_in_validation_and_stand_in_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    silent = "{class_path: FunctionVerifier, init_args: {function: builtins.print, style: sample}}"  # returns None
    length = "{class_path: LengthPenalty, init_args: {max_length: 2, buffer: 1}}"
    parts = f"{{math: {{class_path: MathVerifier}}, length: {length}, silent: {silent}}}"
    quickstart(tmp_path, f"[{{class_path: AllOf, init_args: {{verifiers: {parts}}}}}]")
    (run,) = tmp_path.glob("*/*/")
    events = EventAccumulator(str(run)).Reload()
    curves = {tag for tag in events.Tags()["scalars"] if "reward/" in tag}
    assert {"reward/math", "reward/length", "val/reward/math", "val/reward/length"} <= curves
    assert not {"reward/silent", "val/reward/silent"} & curves, "what nobody has said is no curve"
    # Random weights write 8 tokens, which is more than 3.
    assert [event.value for event in events.Scalars("val/reward/length")] == [-1.0] * 2

    config = run / "config.yaml"
    policy = f"--model.init_args.policy.path={run / 'policy'}"
    few = ["--data.task.init_args.test_size=2", "--model.init_args.policy.init=pretrained"]
    main(["predict", "--config", str(config), policy, *few, f"--run_dir={tmp_path / 'predicted'}"])
    lines = (tmp_path / "predicted/predictions.jsonl").read_text().splitlines()
    for line in lines:
        rewards = json.loads(line)["rewards_by_verifier"]
        assert rewards == {"AllOf": 0.0, "math": 0.0, "length": -1.0, "silent": None}


def test_a_mistake_in_yaml_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    init_args = "{parts: {math: {class_path: MathVerifier}}, weights: {math: high}}"
    with pytest.raises(SystemExit, match="2"):
        quickstart(tmp_path, f"[{{class_path: WeightedVerifier, init_args: {init_args}}}]")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: error: ")]
    assert "must be a number, not high" in line


# -- truncation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda math: WeightedVerifier({"math": math, "length": LengthPenalty(9, 0, "characters")}, required=["math"]),
        lambda math: AllOf({"math": math, "length": LengthPenalty(9, 0, "characters")}),
        lambda math: AnyOf({"math": math}),
        lambda math: ByColumn("kind", {"a": math}),
    ],
)
def test_each_part_decides_whether_a_truncated_completion_can_be_correct(build: Any) -> None:
    sample = Sample("", "#### 5", "5", {"kind": "a"}, FinishReason.LENGTH)
    (refused,) = judge(build(MathVerifier()), [sample])
    assert (refused.correct, refused.format_valid, refused.correct_but_truncated) == (False, False, True)
    (accepted,) = judge(build(MathVerifier(accept_truncated=True)), [sample])
    assert (accepted.correct, accepted.correct_but_truncated) == (True, False)
