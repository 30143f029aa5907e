"""FunctionVerifier: how functions are called, and what is made of what they return."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import FunctionVerifier, Verifier, WeightedVerifier, judge
from grpo_lightning.verifiers.base import rewarded

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "6 * 7?"}]
SAMPLES = [
    Sample(CHAT, "42", "42", {"level": 1}, token_ids=(4, 2, 7)),
    Sample(CHAT, "41", "42", {"level": 2, "hint": "even"}, token_ids=(4, 1, 7)),
]


def path(function: Any) -> str:
    return f"{__name__}.{function.__name__}"


def rewards(verifier: Verifier, samples: list[Sample] = SAMPLES) -> list[float]:
    return [reward for _, reward in rewarded(verifier, samples)]


def error(verifier: Verifier, samples: list[Sample] = SAMPLES) -> str:
    verdicts = judge(verifier, samples)
    assert all(math.isnan(verifier.reward(verdict)) and not verdict.correct for verdict in verdicts)
    (text,) = {verdict.error for verdict in verdicts}
    assert text is not None
    return text


# -- the styles --------------------------------------------------------------------------------------------------------


def on_sample(sample: Sample) -> float:
    return len(sample.completion) / 4 + sample.metadata["level"]


def on_answer(completion: str, answer: str, partial: float = 0.0) -> float:
    return 1.0 if completion == answer else partial


def test_a_function_of_a_sample() -> None:
    assert rewards(FunctionVerifier(path(on_sample))) == [1.5, 2.5]
    assert rewards(FunctionVerifier(on_sample)) == [1.5, 2.5]


def test_a_function_of_completion_and_answer_with_options() -> None:
    assert rewards(FunctionVerifier(path(on_answer), style="answer")) == [1, 0]
    assert rewards(FunctionVerifier(path(on_answer), style="answer", options={"partial": 0.25})) == [1, 0.25]


class Rewards:
    """Other things that can be called."""

    def __init__(self, right: float) -> None:
        self.right = right

    def __call__(self, completion: str, answer: str) -> float:
        return self.right * (completion == answer)

    @staticmethod
    def half(completion: str, answer: str) -> float:
        return 0.5 * (completion == answer)


SCALED = Rewards(2.0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Rewards(3.0), 3),
        (functools.partial(Rewards.half), 0.5),
        (f"{__name__}.Rewards.half", 0.5),
        (f"{__name__}:Rewards.half", 0.5),
        (f"{__name__}.SCALED", 2),
    ],
)
def test_whatever_can_be_called(function: Any, expected: float) -> None:
    assert rewards(FunctionVerifier(function, style="answer")) == [expected, 0]


# Three reward functions as they are written for TRL.


def exact_match(completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if content == gold else 0.0 for content, gold in zip(contents, solution, strict=True)]


def short_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [-len(ids) / 10 for ids in completion_ids]


async def only_level_one(
    prompts: Any, completions: Any, level: list[int], log_extra: Any = None, **kwargs: Any
) -> list[float | None]:
    await asyncio.sleep(0)
    assert prompts == [CHAT, CHAT]
    return [0.5 if number == 1 else None for number in level]


def test_reward_functions_of_trl_work_unchanged() -> None:
    assert rewards(FunctionVerifier(path(exact_match), style="trl", answer_column="solution")) == [1, 0]
    assert rewards(FunctionVerifier(path(short_ids), style="trl")) == [-0.3, -0.3]
    one, other = judge(FunctionVerifier(path(only_level_one), style="trl"), SAMPLES)
    assert (one.score, one.abstained) == (0.5, False)
    assert (other.score, other.abstained, other.error) == (None, True, None)


def test_what_a_trl_function_gets() -> None:
    seen: dict[str, Any] = {}

    def look(**kwargs: Any) -> list[float]:
        seen.clear()
        seen.update(kwargs)
        return [0.0] * len(kwargs["completions"])

    judge(FunctionVerifier(look, style="trl", options={"tolerance": 0.1}), SAMPLES)
    assert seen == {
        "prompts": [CHAT, CHAT],
        "completions": [[{"role": "assistant", "content": text}] for text in ("42", "41")],
        "completion_ids": [[4, 2, 7], [4, 1, 7]],
        "answer": ["42", "42"],
        "level": [1, 2],
        "hint": [None, "even"],
        "tolerance": 0.1,
    }
    judge(FunctionVerifier(look, style="trl", conversational=False), SAMPLES)
    assert seen["prompts"] == ["6 * 7?", "6 * 7?"]
    assert seen["completions"] == ["42", "41"]
    judge(FunctionVerifier(look, style="trl"), [Sample("6 * 7?", "42")])
    assert seen == {"prompts": ["6 * 7?"], "completions": ["42"], "answer": [None]}, "a text stays a text"
    judge(FunctionVerifier(look, style="trl", conversational=True), [Sample("6 * 7?", "42")])
    assert seen == {
        "prompts": [[{"role": "user", "content": "6 * 7?"}]],
        "completions": [[{"role": "assistant", "content": "42"}]],
        "answer": [None],
    }
    judge(FunctionVerifier(look, style="trl", conversational=False), [Sample("6 * 7?", "42")])
    assert seen["prompts"] == ["6 * 7?"]


def test_two_trl_functions_each_for_its_own_rows() -> None:
    """As TRL has it: what a function does not reward counts nothing in the sum."""
    total = WeightedVerifier(
        {
            "one": FunctionVerifier(only_level_one, style="trl"),
            "two": FunctionVerifier(lambda level, **_: [3.0 if number == 2 else None for number in level], style="trl"),
        },
        {"one": 1.0, "two": 2.0},
    )
    assert rewards(total) == [0.5, 6.0]


def changes_lists(prompts: Any, tags: Any, answer: Any, **columns: Any) -> list[float]:
    prompts[0].append({"role": "user", "content": "more"})
    prompts[0][0]["content"] = ""
    tags[0]["all"].clear()
    answer[0].append(43)
    return [1.0]


def changes_the_sample(sample: Sample) -> float:
    assert isinstance(sample.prompt, list)
    sample.prompt.clear()
    sample.metadata["tags"]["all"].clear()
    sample.metadata.clear()  # type: ignore[attr-defined]
    sample.answer.clear()
    return 1.0


def changes_the_answer(completion: str, answer: list[int]) -> float:
    answer.clear()
    return 1.0


@pytest.mark.parametrize("function", [changes_lists, changes_the_sample, changes_the_answer])
def test_what_a_function_changes_is_its_own(function: Any) -> None:
    def sample() -> Sample:
        return Sample([{"role": "user", "content": "6 * 7?"}], "42", [42], {"tags": {"all": ["a"], "deep": ([1], {2})}})

    given = sample()
    assert rewards(FunctionVerifier(function, conversational=True), [given]) == [1]
    assert given == sample()


# -- what they return --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (True, Verdict(True, True)),
        (False, Verdict(False, False)),
        (1, Verdict(True, True, score=1.0)),
        (0.99, Verdict(False, False, score=0.99, reward_alone=True)),
        (-2.5, Verdict(False, False, score=-2.5, reward_alone=True)),
        (None, Verdict(False, False, abstained=True)),
        (Verdict(False, True, "Look again."), Verdict(False, True, "Look again.")),
        (np.float32(0.5), Verdict(False, False, score=0.5, reward_alone=True)),
        (np.bool_(True), Verdict(True, True)),
        (torch.tensor(1.5), Verdict(True, True, score=1.5, reward_alone=True)),
        (Decimal("0.5"), Verdict(False, False, score=0.5, reward_alone=True)),
        (Fraction(3, 2), Verdict(True, True, score=1.5, reward_alone=True)),
    ],
)
def test_values_and_their_verdicts(value: Any, verdict: Verdict) -> None:
    assert judge(FunctionVerifier(lambda sample: value), SAMPLES) == [verdict, verdict]
    assert judge(FunctionVerifier(lambda **_: [value, value], style="trl"), SAMPLES) == [verdict, verdict]


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 0.0), np.array([1, 0]), torch.tensor([1.0, 0.0]), iter([1.0, 0.0]), map(float, "10"), range(1, -1, -1),
        deque([1, 0]), [Decimal(1), Fraction(0)],
    ],
)  # fmt: skip
def test_other_kinds_of_lists(values: Any) -> None:
    assert rewards(FunctionVerifier(lambda **_: values, style="trl")) == [1, 0]


def test_a_generator_gives_rewards_in_order() -> None:
    def each(completions: Any, answer: Any) -> Iterator[float]:
        for completion, gold in zip(completions, answer, strict=True):
            yield float(completion == gold)

    def breaks(completions: Any) -> Iterator[float]:
        yield 1.0
        raise OSError("gone")

    def reads_messages(completions: Any) -> Iterator[float]:
        yield from (len(completion[0]["content"]) for completion in completions)

    assert rewards(FunctionVerifier(each, conversational=False)) == [1, 0]
    assert error(FunctionVerifier(breaks)) == "OSError: gone"
    assert rewards(FunctionVerifier(reads_messages)) == [2, 2]
    assert "conversational: true" in error(FunctionVerifier(reads_messages), [Sample("6 * 7?", "42")])


def test_the_threshold_of_correct() -> None:
    correct = [
        [verdict.correct for verdict in judge(FunctionVerifier(lambda s: float(s.completion), correct_at=at), SAMPLES)]
        for at in (41, 41.5, 43)
    ]
    assert correct == [[True, True], [True, False], [False, False]]


def test_a_number_between_right_and_wrong_is_a_reward_alone() -> None:
    values = [1.0, 0.0, 0.5, -19, 2, True, Verdict(True, True, score=0.5)]
    verdicts = judge(FunctionVerifier(lambda **_: values, style="trl"), [SAMPLES[0]] * 7)
    assert [verdict.reward_alone for verdict in verdicts] == [False, False, True, True, True, False, False]
    chosen = judge(FunctionVerifier(lambda **_: values, style="trl", correct_at=0.5), [SAMPLES[0]] * 7)
    assert not any(verdict.reward_alone for verdict in chosen)


def test_rewards_of_bools_and_verdicts_are_options() -> None:
    values: list[Any] = [True, False, Verdict(False, True), Verdict(True, True), Verdict(False, False), 0.7]
    verifier = FunctionVerifier(
        lambda **_: values, style="trl", reward_correct=5.0, reward_format=3.0, reward_wrong=-1.0
    )
    assert rewards(verifier, [SAMPLES[0]] * 6) == [5, -1, 3, 5, -1, 0.7]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "ValueError: f returned a reward of nan"),
        (-math.inf, "ValueError: f returned a reward of -inf"),
        (torch.tensor(math.nan), "ValueError: f returned a reward of nan"),
        ("1.0", "TypeError: f must return a number, bool, Verdict or None, not str"),
        ([1.0], "TypeError: f must return a number, bool, Verdict or None, not list"),
        (torch.ones(2), "TypeError: f must return a number, bool, Verdict or None, not list"),
        (1 + 2j, "TypeError: f must return a number, bool, Verdict or None, not complex"),
        (Decimal("NaN"), "ValueError: f returned a reward of nan"),
        (10**400, "OverflowError: int too large to convert to float"),
    ],
)
def test_no_reward_is_made_of_anything_else(value: Any, text: str) -> None:
    def f(*args: Any, **kwargs: Any) -> Any:
        return [value, value] if kwargs else value

    assert error(FunctionVerifier(f, style="sample")) == text
    assert error(FunctionVerifier(f, style="trl")) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "TypeError: f must return a list of 2 rewards, not float"),
        (None, "TypeError: f must return a list of 2 rewards, not NoneType"),
        ("ab", "TypeError: f must return a list of 2 rewards, not str"),
        (torch.tensor(1.0), "TypeError: f must return a list of 2 rewards, not float"),
        ({1.0, 0.0}, "TypeError: f must return a list of 2 rewards, not set"),
        (range(1), "ValueError: f must return a list of 2 rewards, but returned 1"),
        ({0: 1.0, 1: 0.0}, "TypeError: f must return a list of 2 rewards, not dict"),
        ([], "ValueError: f must return a list of 2 rewards, but returned 0"),
        ([1.0], "ValueError: f must return a list of 2 rewards, but returned 1"),
        ([1.0] * 3, "ValueError: f must return a list of 2 rewards, but returned 3"),
    ],
)
def test_a_scalar_or_a_wrong_length_is_never_spread_over_the_batch(value: Any, text: str) -> None:
    def f(**kwargs: Any) -> Any:
        return value

    async def later(**kwargs: Any) -> Any:
        return value

    later.__name__ = "f"
    assert error(FunctionVerifier(f, style="trl")) == text
    assert error(FunctionVerifier(later, style="trl")) == text


def test_a_function_that_raises() -> None:
    def fails_on_41(sample: Sample) -> float:
        if sample.completion == "41":
            raise OSError("no answer from the judge")
        return 1.0

    one, other = judge(FunctionVerifier(fails_on_41), SAMPLES)
    assert one == Verdict(True, True, score=1.0), "a neighbour keeps its reward"
    assert other.error == "OSError: no answer from the judge"

    def wants_more(completions: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
        return [trainer_state.global_step] * len(completions)

    assert error(FunctionVerifier(wants_more, style="trl")) == (
        "TypeError: wants_more needs 'trainer_state', which only TRL's trainer has; give the parameter a default"
    )


@given(st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(), st.binary(), st.lists(st.floats())))
def test_every_value_gives_a_verdict_and_only_finite_numbers_a_reward(value: Any) -> None:
    ((verdict, reward),) = rewarded(FunctionVerifier(lambda sample: value), [SAMPLES[0]])
    assert math.isfinite(reward) == verdict.judged
    if verdict.judged:
        assert reward == float(value)
        assert isinstance(value, (int, float))


# -- asynchronous functions --------------------------------------------------------------------------------------------


async def slow(sample: Sample) -> float:
    await asyncio.sleep(0.1)
    if sample.completion == "fails":
        raise OSError("no answer from the judge")
    if sample.completion == "exits":
        raise SystemExit(3)
    return float(sample.completion)


def test_a_batch_is_awaited_at_once_and_in_order() -> None:
    samples = [Sample("", str(number)) for number in range(50)]
    started = time.perf_counter()
    assert rewards(FunctionVerifier(path(slow)), samples) == list(range(50))
    assert time.perf_counter() - started < 2


def test_one_failing_call_leaves_the_others_alone() -> None:
    one, two, three, four = judge(FunctionVerifier(slow), [Sample("", text) for text in ("fails", "2", "exits", "4")])
    assert one.error == "OSError: no answer from the judge"
    assert three.error == "RuntimeError: SystemExit"
    assert (two.score, four.score) == (2, 4)


def test_from_inside_a_running_loop_as_in_a_notebook() -> None:
    async def cell() -> list[float]:
        return rewards(FunctionVerifier(slow), [Sample("", "3")])

    assert asyncio.run(cell()) == [3]


def test_all_batches_share_one_loop() -> None:
    async def loop(sample: Sample) -> float:
        return id(asyncio.get_running_loop())

    assert rewards(FunctionVerifier(loop)) == rewards(FunctionVerifier(loop))


def test_a_call_that_hangs_is_an_error_after_its_limit() -> None:
    async def stubborn(sample: Sample) -> float:
        while sample.completion == "41":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
                raise
        return 1.0

    started = time.perf_counter()
    one, other = judge(FunctionVerifier(stubborn, timeout_s=0.1), SAMPLES)
    assert time.perf_counter() - started < 0.4, "not even for one that is slow to give up"
    assert one.correct
    assert other.error == "TimeoutError: no reward within 0.1 s"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_a_loop_of_its_own() -> None:
    assert rewards(FunctionVerifier(slow)) == [42, 41]
    child = os.fork()
    if child == 0:
        os._exit(0 if rewards(FunctionVerifier(slow)) == [42, 41] else 1)
    assert os.waitpid(child, 0)[1] == 0


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"function": "no_such_module.f"},
            "FunctionVerifier.function: cannot import 'no_such_module.f': No module named",
        ),
        ({"function": "math.no_such"}, "FunctionVerifier.function: cannot import 'math.no_such': module 'math' has no"),
        ({"function": "not a path"}, "FunctionVerifier.function: cannot import 'not a path': "),
        ({"function": "math.pi"}, "FunctionVerifier.function: math.pi is not callable; give the path of a function"),
        ({"function": 3}, "FunctionVerifier.function: int is not callable; give the path of a function"),
        (
            {"function": on_sample, "style": "TRL"},
            "FunctionVerifier.style: must be one of sample, answer, trl, not 'TRL'",
        ),
        (
            {"function": on_sample, "timeout_s": 0},
            "FunctionVerifier.timeout_s: must be above 0, or null for no limit, not 0",
        ),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FunctionVerifier(**options)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
