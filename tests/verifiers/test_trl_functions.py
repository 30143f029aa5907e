"""FunctionVerifier with functions written for TRL: what they see, which columns they get, how they are recognised."""

from __future__ import annotations

import functools
import math
import os.path
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers import (
    AllOf,
    AnyOf,
    ByColumn,
    FunctionVerifier,
    MathVerifier,
    Verifier,
    WeightedVerifier,
    judge,
)
from grpo_lightning.verifiers.base import rewarded
from grpo_lightning.verifiers.function import as_verifiers

USER = {"role": "user", "content": "6 * 7?"}
SYSTEM = {"role": "system", "content": "Be short."}
TEXT, CHAT = Prompt([SYSTEM, USER], "42"), Prompt([SYSTEM, USER], "42", is_chat=True)


def rewards(verifier: Verifier, samples: Sequence[Sample]) -> list[float]:
    return [reward for _, reward in rewarded(verifier, samples)]


# The example of TRL's own documentation.
def reward_len(completions: Any, **kwargs: Any) -> list[float]:
    return [-abs(20 - len(completion)) for completion in completions]


# -- texts and chats ---------------------------------------------------------------------------------------------------


def test_the_length_of_a_text_and_not_of_a_list() -> None:
    texts = ["a" * 20, "a" * 23, ""]
    assert rewards(FunctionVerifier(reward_len), [TEXT.sample(text) for text in texts]) == [0, -3, -20]
    assert rewards(FunctionVerifier(reward_len), [CHAT.sample(text) for text in texts]) == [-19] * 3, "as in TRL"


@pytest.mark.parametrize(
    ("prompt", "conversational", "is_chat"),
    [
        (TEXT, "auto", False),
        (CHAT, "auto", True),
        (TEXT, True, True),
        (CHAT, False, False),
        (Prompt([USER]), "auto", False),
        (Prompt([USER, {"role": "assistant", "content": "40?"}, USER]), "auto", True),
        (Prompt([USER, {"role": "assistant", "content": "It is"}]), "auto", True),
        (Prompt([]), "auto", True),
    ],
)
def test_texts_or_messages(prompt: Prompt, conversational: Any, is_chat: bool) -> None:
    seen: list[Any] = []

    def look(prompts: Any, completions: Any) -> list[float]:
        seen.extend([*prompts, *completions])
        return [0.0]

    judge(FunctionVerifier(look, conversational=conversational), [prompt.sample("42")])
    if is_chat:
        assert seen == [prompt.messages, [{"role": "assistant", "content": "42"}]]
    else:
        assert seen == ["6 * 7?", "42"]


def test_each_row_goes_by_its_own_prompt() -> None:
    kinds = FunctionVerifier(lambda prompts, completions: [isinstance(one, str) for one in [*prompts]])
    assert rewards(kinds, [TEXT.sample(""), CHAT.sample(""), TEXT.sample(""), Sample("x", ""), Sample([USER], "")]) == [
        1, 0, 1, 1, 0,
    ]  # fmt: skip


def test_a_function_of_messages_on_texts_is_told_the_option() -> None:
    def contents(completions: Any) -> list[float]:
        return [len(completion[0]["content"]) for completion in completions]

    (verdict,) = judge(FunctionVerifier(contents), [TEXT.sample("42")])
    assert verdict.error is not None
    assert verdict.error.startswith("TypeError: string indices must be integers")
    assert verdict.error.endswith("a function that reads completion[0]['content'] needs conversational: true")
    assert rewards(FunctionVerifier(contents, conversational=True), [TEXT.sample("42")]) == [2]
    assert rewards(FunctionVerifier(contents), [CHAT.sample("42")]) == [2]
    for verifier, sample in (
        (FunctionVerifier(contents, conversational=False), TEXT.sample("42")),
        (FunctionVerifier(lambda completions: [1 + "a"]), CHAT.sample("42")),
        (FunctionVerifier(lambda completions: [1 / 0]), TEXT.sample("42")),
    ):
        (verdict,) = judge(verifier, [sample])
        assert verdict.error is not None
        assert "conversational" not in verdict.error


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda completions: [one["content"] for one in completions], "string indices"),
        (lambda completions: [one.get("content") for one in completions], "no attribute 'get'"),
        (lambda completions: [len(None) for one in completions], None),  # type: ignore[arg-type]
        (lambda completions: [one.level for one in completions], None),
        (lambda completions, **columns: [columns["level"] + "a"], None),
    ],
)
def test_only_a_text_read_as_a_message_is_told_the_option(function: Any, text: str | None) -> None:
    (verdict,) = judge(FunctionVerifier(function), [Prompt([USER], metadata={"level": 1}).sample("42")])
    assert verdict.error is not None
    assert ("conversational: true" in verdict.error) == (text is not None)
    assert text is None or text in verdict.error


def test_a_parameter_without_a_column_is_named() -> None:
    (verdict,) = judge(FunctionVerifier(lambda completions, solution: [1.0]), [ROWS[0].sample("42")])
    assert verdict.error is not None
    assert verdict.error.startswith(
        "TypeError: <lambda> has the parameter 'solution', and the rows have no such column, only kept, answer; name"
    )


def test_a_function_that_takes_the_sample_for_a_text_is_told_the_name() -> None:
    for function in (len, lambda x: x + "a", lambda x: x[0], lambda x: x.strip(), lambda x: float("4" in x)):
        (verdict,) = judge(FunctionVerifier(function), [TEXT.sample("42")])
        assert verdict.error is not None
        assert verdict.error.endswith("gets the Sample: name it completion to get the text"), verdict.error
    (verdict,) = judge(FunctionVerifier(lambda response: response.completion), [TEXT.sample("42")])
    assert (verdict.error or "").endswith(
        "it gets the text of the completion: name the parameter sample for the Sample"
    )
    (verdict,) = judge(FunctionVerifier(lambda sample: len(sample)), [TEXT.sample("42")])
    assert verdict.error == "TypeError: object of type 'Sample' has no len()"


# -- columns -----------------------------------------------------------------------------------------------------------

ROWS = [
    Prompt([USER], "42", {"kept": 1}, columns={"prompt": "6 * 7?", "answer": "42", "level": level, "completion": "x"})
    for level in (1, 2)
]


def passed(verifier: FunctionVerifier, rows: Sequence[Prompt] = ROWS) -> list[float]:
    return rewards(verifier, [row.sample("42") for row in with_columns(rows, [verifier])])


def test_a_named_column_comes_from_the_row_and_the_others_stay_there() -> None:
    verifier = FunctionVerifier(lambda completions, level: [10.0 * one for one in level])
    assert passed(verifier) == [10, 20]
    assert [dict(row.metadata) for row in with_columns(ROWS, [verifier])] == [
        {"kept": 1, "level": 1},
        {"kept": 1, "level": 2},
    ]
    assert with_columns(ROWS, [FunctionVerifier(len), MathVerifier()]) == ROWS, "nobody asks for a column"


def test_any_keyword_gives_all_columns_but_those_that_trl_keeps() -> None:
    seen: dict[str, Any] = {}

    def look(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0, 0.0]

    passed(FunctionVerifier(look))
    assert seen == {
        "prompts": ["6 * 7?"] * 2, "completions": ["42"] * 2, "answer": ["42"] * 2, "kept": [1, 1], "level": [1, 2],
    }  # fmt: skip


def test_metadata_goes_before_a_column_of_its_name() -> None:
    rows = [Prompt([USER], "42", {"level": "renamed"}, columns={"level": "raw"})]
    assert passed(FunctionVerifier(lambda completions, level: [one == "renamed" for one in level]), rows) == [1]


@pytest.mark.parametrize(
    ("gold", "column", "expected"), [("gold", "raw", "gold"), (None, "raw", "raw"), ("gold", None, "gold")]
)
def test_the_gold_answer_goes_before_a_column_of_its_name(gold: Any, column: Any, expected: str) -> None:
    rows = [Prompt([USER], gold, columns={} if column is None else {"answer": column, "solution": column})]
    for name in ("answer", "solution"):
        seen: list[Any] = []

        def look(completions: Any, answer: Any = None, solution: Any = None, seen: list[Any] = seen) -> list[float]:
            seen.extend([answer, solution])
            return [0.0]

        passed(FunctionVerifier(look, style="trl", answer_column=name, options={"seen": seen}), rows)
        assert seen[("answer", "solution").index(name)] == [expected]


def test_a_column_that_is_optional_may_be_missing() -> None:
    assert passed(FunctionVerifier(lambda completions, weight=3.0, trainer_state=None: [weight] * 2)) == [3, 3]


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (
            lambda completions, target: [0.0],
            {},
            "FunctionVerifier.function: <lambda> has the parameter 'target', and the rows have no such column, only "
            "prompt, answer, level, completion, kept; name the one that is meant by "
            "data.task.init_args.metadata_columns ({target: COLUMN}), or give the parameter in options",
        ),
        (
            lambda completions, trainer_state, **kwargs: [0.0],
            {},
            "FunctionVerifier.function: <lambda> needs 'trainer_state', which only TRL's trainer has; give the "
            "parameter a default",
        ),
        (lambda completions, *, log_extra: [0.0], {}, "FunctionVerifier.function: <lambda> needs 'log_extra', which"),
    ],
)
def test_a_column_that_no_row_has_is_one_sentence(function: Any, options: Any, text: str) -> None:
    verifier = FunctionVerifier(function, options=options)
    for around in (
        verifier,
        WeightedVerifier({"one": verifier}),
        AnyOf([verifier]),
        ByColumn("level", {"1": verifier}),
    ):
        with pytest.raises(ConfigError) as caught:
            with_columns(ROWS, [MathVerifier(), around])
        assert str(caught.value).startswith(text)
        assert "\n" not in str(caught.value)


def test_options_fill_a_parameter() -> None:
    assert passed(FunctionVerifier(lambda completions, target: [target, target], options={"target": 0.5})) == [0.5, 0.5]


def test_other_styles_ask_for_no_column() -> None:
    assert FunctionVerifier(lambda sample: 1.0).columns(["level"], True) == ()
    assert FunctionVerifier(lambda completion, level: 1.0).columns(["topic"], True) == ()
    assert FunctionVerifier(lambda completion, target: 1.0).columns(["target"], True) == ()
    assert FunctionVerifier(lambda completion, level: 1.0, "answer").columns(["level"], True) == ()
    with pytest.raises(ConfigError, match=r"get the completion as 'level', by position, .*: call it completion, or"):
        FunctionVerifier(lambda level, answer: 1.0).columns(["level"], True)
    assert MathVerifier().columns(["level"], True) == ()


def test_a_parameter_by_position_may_have_the_name_of_the_answer_s_column_and_of_no_other() -> None:
    verifier = FunctionVerifier(lambda completion, level: 1.0)
    assert verifier.columns(["prompt", "level"], True) == ()
    verifier.require(Prompt([], "3", columns={"level": 3}))
    with pytest.raises(ValueError, match=r"get the answer as 'level', by position, .*: call it answer, or call"):
        verifier.require(Prompt([], "42", columns={"level": 3}))


def test_a_composite_asks_for_what_its_parts_need() -> None:
    level = FunctionVerifier(lambda completions, level: [float(one) for one in level])
    total = WeightedVerifier({"level": level, "answer": FunctionVerifier(lambda completion, answer: 1.0)})
    assert rewards(total, [row.sample("42") for row in with_columns(ROWS, [total])]) == [2, 3]


# -- which style -------------------------------------------------------------------------------------------------------


class Called:
    def __call__(self, completion_ids: Any, **kwargs: Any) -> list[float]:
        return []

    def of_a_sample(self, sample: Sample) -> float:
        return 0.0


def with_several(prompts: Any, completions: Any, completion_ids: Any, target: Any) -> list[float]:
    return []


async def later(completions: Any, **kwargs: Any) -> list[float]:
    return []


@pytest.mark.parametrize(
    ("function", "options", "style"),
    [
        (reward_len, {}, "trl"),
        (lambda prompts, **_: [], {}, "trl"),
        (lambda completion_ids: [], {}, "trl"),
        (lambda target, completions: [], {}, "trl"),
        (lambda *, completions: [], {}, "trl"),
        (lambda **_: [], {}, "trl"),
        (with_several, {}, "trl"),
        (later, {}, "trl"),
        (Called(), {}, "trl"),
        (functools.partial(with_several, target=1), {}, "trl"),
        (lambda completion, answer: 0.0, {}, "answer"),
        (lambda text, gold: 0.0, {}, "answer"),
        (lambda text, gold, partial=0.5: 0.0, {}, "answer"),
        (lambda text, gold, partial: 0.0, {"partial": 1}, "answer"),
        (lambda completion, answer=None: 0.0, {}, "answer"),
        (lambda completion, answer, **_: 0.0, {}, "answer"),
        (math.atan2, {}, "answer"),
        (lambda completion: 0.0, {}, "answer"),
        (lambda text: 0.0, {}, "answer"),
        (lambda text, /: 0.0, {}, "answer"),
        (lambda prompt, completion: 0.0, {}, "answer"),
        (lambda completion, *, ground_truth: 0.0, {}, "answer"),
        (lambda completion, target=200: 0.0, {}, "answer"),
        (lambda sample, answer=None: 0.0, {}, "sample"),
        (lambda sample: 0.0, {}, "sample"),
        (lambda s, scale=1.0: 0.0, {}, "sample"),
        (lambda sample, **_: 0.0, {}, "sample"),
        (Called().of_a_sample, {}, "sample"),
        (os.path.commonprefix, {}, "sample"),
    ],
)
def test_the_style_is_read_off_the_parameters(function: Callable[..., Any], options: Any, style: str) -> None:
    assert FunctionVerifier(function, options=options).style == style
    assert FunctionVerifier(function, "sample", options).style == "sample", "what is given counts"


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0.0,
        lambda *args: 0.0,
        lambda *args, **kwargs: 0.0,
        lambda a, b, c: 0.0,
        lambda level, **kwargs: 0.0,
        lambda level, target, **kwargs: 0.0,
        lambda sample, *, target: 0.0,
        lambda answer: 0.0,
        lambda answer, gold: 0.0,
        lambda prompt, answer: 0.0,
        lambda sample, gold: 0.0,
        lambda completion, **columns: 0.0,
        lambda prompt, completion, level: 0.0,
        print,
    ],
)
def test_parameters_that_say_nothing_are_one_sentence(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        FunctionVerifier(function)
    assert str(caught.value) == (
        f"FunctionVerifier.style: the parameters of {function.__name__} do not tell how to call it; name them as "
        "in f(sample), f(completion, answer) or f(prompt, completion), or set style to sample for f(sample), answer "
        "for f(completion, answer), or trl for f(completions, **columns)"
    )
    assert FunctionVerifier(function, "trl").style == "trl"


def said(**values: Any) -> Verdict:
    return Verdict(True, True, " ".join(f"{name}={value}" for name, value in values.items()))


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (lambda prompt, completion: said(p=prompt, c=completion), {}, "p=6 * 7? c=41"),
        (lambda completion, prompt: said(p=prompt, c=completion), {}, "p=6 * 7? c=41"),
        (lambda answer, completion: said(a=answer, c=completion), {}, "a=42 c=41"),
        (lambda ground_truth, response: said(a=ground_truth, c=response), {}, "a=42 c=41"),
        (lambda ground_truth, mine, /: said(a=ground_truth, c=mine), {}, "a=42 c=41"),
        (lambda answer, mine: said(a=answer, c=mine), {}, "a=42 c=41"),
        (lambda question, mine: said(p=question, c=mine), {}, "p=6 * 7? c=41"),
        (lambda mine, gold: said(a=gold, c=mine), {}, "a=42 c=41"),
        (lambda mine, yours: said(a=yours, c=mine), {}, "a=42 c=41"),
        (lambda prompt, answer, completion: said(p=prompt, a=answer, c=completion), {}, "p=6 * 7? a=42 c=41"),
        (lambda text, *, label: said(a=label, c=text), {}, "a=42 c=41"),
        (lambda text, label=None: said(a=label, c=text), {}, "a=42 c=41"),
        (lambda text, target=200: said(t=target, c=text), {}, "t=200 c=41"),
        (lambda scale, answer, text: said(s=scale, a=answer, c=text), {"scale": 2}, "s=2 a=42 c=41"),
        (functools.partial(lambda answer, text: said(a=answer, c=text), answer="0"), {}, "a=0 c=41"),
        (functools.partial(lambda answer, text: said(a=answer, c=text), "0"), {}, "a=0 c=41"),
    ],
)
def test_names_count_before_positions(function: Any, options: Any, expected: str) -> None:
    for prompt in (TEXT, CHAT):
        (verdict,) = judge(FunctionVerifier(function, options=options), [prompt.sample("41")])
        assert verdict == Verdict(True, True, expected)


def test_a_chosen_style_calls_by_position_what_names_do_not_tell() -> None:
    verifier = FunctionVerifier(lambda answer, gold: said(c=answer, a=gold), "answer")
    assert judge(verifier, [TEXT.sample("41")]) == [Verdict(True, True, "c=41 a=42")]
    assert judge(FunctionVerifier(lambda *both: said(both=both), "answer"), [TEXT.sample("41")])[0].feedback == (
        "both=('41', '42')"
    )


def test_completions_that_cannot_be_given_by_name_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"<lambda> takes 'completions' by position only, .* remove the / from"):
        FunctionVerifier(lambda completions, /: [0.0])


def test_a_function_of_the_text_needs_no_answer() -> None:
    FunctionVerifier(lambda completion: 1.0).require(Prompt([USER]))
    FunctionVerifier(lambda prompt, completion: 1.0).require(Prompt([USER]))
    with pytest.raises(ValueError, match="needs the gold answer"):
        FunctionVerifier(lambda answer, gold: 1.0, "answer").require(Prompt([USER]))


def test_a_function_of_the_answer_is_refused_where_no_row_has_one() -> None:
    verifier = FunctionVerifier(lambda completion, answer: 1.0)
    verifier.require(TEXT)
    with pytest.raises(ValueError, match="<lambda> needs the gold answer, and the row has none"):
        verifier.require(Prompt([USER]))
    FunctionVerifier(reward_len).require(Prompt([USER]))


# -- what a program may give -------------------------------------------------------------------------------------------


def test_one_or_several_verifiers_or_functions() -> None:
    (math_verifier,) = as_verifiers(MathVerifier())
    assert isinstance(math_verifier, MathVerifier)
    (function,) = as_verifiers(reward_len)
    assert rewards(function, [TEXT.sample("")]) == [-20]
    assert [type(one).__name__ for one in as_verifiers((MathVerifier(), reward_len, len))] == [
        "MathVerifier",
        "FunctionVerifier",
        "FunctionVerifier",
    ]


def test_functions_as_parts_of_composites() -> None:
    sample = [TEXT.sample("42")]
    assert rewards(WeightedVerifier({"len": reward_len, "math": len_of}, {"len": 1.0, "math": 0.5}), sample) == [-17]  # type: ignore[dict-item]
    assert rewards(AllOf([len_of]), sample) == [1]  # type: ignore[list-item]
    assert rewards(AnyOf({"len": len_of}), sample) == [1]  # type: ignore[dict-item]
    row = [Prompt([USER], metadata={"kind": "a"}).sample("42")]
    assert rewards(ByColumn("kind", {"a": len_of}), row) == [2]  # type: ignore[dict-item]


def len_of(sample: Sample) -> float:
    return float(len(sample.completion))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (MathVerifier, "model.verifiers: MathVerifier is a class; make an object of it, MathVerifier()"),
        ([None], "model.verifiers: None is neither a verifier nor a function; give one, such as MathVerifier()"),
        ("MathVerifier", "model.verifiers: 'MathVerifier' is neither a verifier nor a function"),
        ([lambda: 0.0], "FunctionVerifier.style: the parameters of <lambda> do not tell how to call it"),
    ],
)
def test_anything_else_is_one_sentence(given: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_verifiers(given)
    assert str(caught.value).startswith(text)


# -- TRL's own reward functions, as they are installed -----------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Any:
    pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[bench]' brings it")
    pytest.importorskip("math_verify", reason="TRL's accuracy rewards need math-verify")
    import trl.rewards

    return trl.rewards


def third(answer: str, **row: Any) -> Sample:
    """The chat prompt's row has a column ``solution``, which the completion answers."""
    prompt = Prompt([USER], is_chat=True, columns={"solution": r"$\frac{1}{3}$", **row})
    return (with_columns([prompt], [FunctionVerifier(lambda **_: [])])[0]).sample(answer)


@pytest.mark.parametrize("function", ["accuracy_reward", "reasoning_accuracy_reward"])
def test_their_accuracy(shipped: Any, function: str) -> None:
    verifier = FunctionVerifier(f"trl.rewards.{function}")
    assert verifier.style == "trl"
    right, wrong = (third(rf"<think>Hm.</think>So \boxed{{\frac{{1}}{{{n}}}}}.") for n in (3, 2))
    assert rewards(verifier, [right, wrong, right]) == [1, 0, 1]
    # Where they cannot read the solution they return None.
    (verdict,) = judge(verifier, [third(r"</think>\boxed{1}", solution="")])
    assert verdict.abstained


def test_their_accuracy_needs_a_column_and_says_so(shipped: Any) -> None:
    with pytest.raises(ConfigError, match=r"accuracy_reward has the parameter 'solution', and the rows have no such"):
        with_columns(ROWS, [FunctionVerifier(shipped.accuracy_reward)])


def test_their_thoughts(shipped: Any) -> None:
    verifier = FunctionVerifier(shipped.think_format_reward)
    texts = ["<think>\nHm.\n</think>\n42", "<think>\nHm.\n42"]
    assert rewards(verifier, [CHAT.sample(text) for text in texts]) == [1, 0]
    assert all(math.isnan(reward) for reward in rewards(verifier, [TEXT.sample(text) for text in texts]))
    told = FunctionVerifier(shipped.think_format_reward, conversational=True)
    assert rewards(told, [TEXT.sample(text) for text in texts]) == [1, 0]


@pytest.mark.parametrize(
    ("factory", "options", "ids", "expected"),
    [
        # By hand: 90 of 100 tokens are half-way into the last 20; of four 2-grams of fives one is new.
        ("get_soft_overlong_punishment", {"max_completion_len": 100, "soft_punish_cache": 20}, [1] * 90, -0.5),
        ("get_soft_overlong_punishment", {"max_completion_len": 100, "soft_punish_cache": 20}, [1] * 80, 0.0),
        ("get_repetition_penalty_reward", {"ngram_size": 2}, [5] * 5, -0.75),
        ("get_repetition_penalty_reward", {"ngram_size": 2}, [1, 2, 3, 4], 0.0),
        # Half of the length is half of the cosine: the middle of 0.5 and 1.
        ("get_cosine_scaled_reward", {"max_len": 100}, [1] * 50, 0.75),
        ("get_cosine_scaled_reward", {"max_len": 100}, [1] * 100, 0.5),
    ],
)
def test_their_lengths(shipped: Any, factory: str, options: Any, ids: list[int], expected: float) -> None:
    verifier = FunctionVerifier(getattr(shipped, factory)(**options))
    right = third(r"\boxed{\frac{1}{3}}")
    sample = Sample(right.prompt, right.completion, metadata=right.metadata, token_ids=ids)
    assert rewards(verifier, [sample]) == [pytest.approx(expected)]
