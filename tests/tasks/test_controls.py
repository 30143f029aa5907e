"""The two controls per row: its gold answer is accepted, and a certainly wrong answer is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import MissingSplit, Task, check_controls
from grpo_lightning.tasks.controls import check_sample
from grpo_lightning.tasks.wrong_answers import wrong_completions
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers import CodeVerifier, JSONSchemaVerifier, MathVerifier, Verifier
from grpo_lightning.verifiers.base import rewarded

TESTS = "assert f(1) == 2"
WRONG_F = "def f(*args, **kwargs):\n    return object()"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Rows(Task):
    """A train split with the given rows."""

    def __init__(self, *prompts: Prompt) -> None:
        super().__init__()
        self.rows = prompts

    def prompts(self, split: str) -> Any:
        if split != "train":
            raise MissingSplit("none")
        return self.rows

    def gold_completion(self, prompt: Prompt) -> str:
        if prompt.solution is None:
            raise ConfigError("none")
        return prompt.solution


def row(answer: Any = None, solution: str | None = None, **metadata: Any) -> Prompt:
    return Prompt([{"role": "user", "content": "?"}], answer, metadata, solution)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        (row("72", "70 + 2 = 72\n#### 72"), "70 + 2 = 72\n#### 73"),
        (row("-1", "#### -1"), "#### 0"),
        (row(r"\frac{1}{2}", r"\boxed{\frac{1}{2}}"), r"\boxed{-918273.645}"),
        (row("Paris", "Paris"), "-918273.645"),
        (row(72, "#### 72"), "#### 73"),
        (row({"a": 1}, '{"a": 1}'), '{"a": 1000003}'),
        (row({"a": [True, "x", None]}, '{"a": [true, "x", null]}'),
         '{"a": ["True, certainly wrong", "x, certainly wrong", "certainly wrong"]}'),
        (row({"a": 1}, '```json\n{"a": 1}\n```'), '```json\n{"a": 1000003}\n```'),
        (row(None, "def f(x):\n    return x + 1", tests=TESTS),
         f"def f(x):\n    return x + 1\n\n{WRONG_F}\n"),
        (row(None, "Here:\n```python\ndef f(x):\n    return x + 1\n```\nDone.", tests=TESTS),
         f"Here:\n```python\ndef f(x):\n    return x + 1\n\n{WRONG_F}\n```\nDone."),
        (row(None, "print(int(input()) + 1)", io=[{"stdin": "1", "stdout": "2"}]),
         '\nimport sys\nsys.stdin.read()\nprint("certainly wrong")\n'),
        (row(None, None, tests=TESTS, entry_point="f"), f"```python\n{WRONG_F}\n```"),
        (row(None, None, tests=TESTS), f"```python\n{WRONG_F}\n```"),
        (row(None, None, tests=[TESTS, TESTS]), f"```python\n{WRONG_F}\n```"),
        (row(None, None, tests=TESTS, entry_point={"func_name": "f"}), f"```python\n{WRONG_F}\n```"),
        (row(None, None, tests=TESTS, entry_point="Solution().f"),
         "```python\nclass Solution:\n    @staticmethod\n    def f(*args, **kwargs):\n        return object()\n```"),
        (row(None, "```python\nimport math\n```\n```python\nf = lambda x: x + 1\n```", tests=TESTS),
         f"```python\nimport math\n```\n```python\nf = lambda x: x + 1\n\n{WRONG_F}\n```"),
    ],
)  # fmt: skip
def test_a_wrong_completion(prompt: Prompt, wrong: str) -> None:
    assert Rows(prompt).wrong_completions(prompt) == [wrong]


@pytest.mark.parametrize("prompt", [row(), row("72", "seventy-two"), row({}, "{}"), row("72")])
def test_a_row_without_an_identifiable_answer_has_no_wrong_completion(prompt: Prompt) -> None:
    assert Rows(prompt).wrong_completions(prompt) == []


@settings(deadline=None)
@given(st.integers(-(10**20), 10**20))
def test_a_wrong_integer_is_wrong(answer: int) -> None:
    (wrong,) = wrong_completions(row(str(answer)), f"#### {answer}")
    assert rewarded(MathVerifier(), [Sample("", wrong, str(answer))])[0][1] == 0.5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), json_values, min_size=1, max_size=3))
def test_a_wrong_document_is_wrong(document: dict[str, Any]) -> None:
    for options in ({}, {"rel_tol": 0.5}, {"abs_tol": 1000.0}, {"array_order": False, "extra_fields": True}):
        verifier = JSONSchemaVerifier({"type": "object"}, **options)
        for wrong in wrong_completions(row(document), json.dumps(document)):
            assert not rewarded(verifier, [Sample("", wrong, document)])[0][0].correct


@pytest.mark.parametrize(
    ("options", "gold"),
    [({"rel_tol": 0.01}, {"a": 1000}), ({"rel_tol": 0.9}, {"a": -250_000}), ({"abs_tol": 2.0}, {"a": 0}),
     ({"array_order": False}, {"a": [True, False]}), ({"array_order": False}, {"a": [1, 2, 0.5, None]})],
)  # fmt: skip
def test_a_verifier_with_tolerances_is_not_accused(options: dict[str, Any], gold: Any) -> None:
    verifier = JSONSchemaVerifier({"type": "object"}, **options)
    assert list(check_controls(Rows(row(gold, json.dumps(gold))), [verifier])) == []


def test_good_rows_pass() -> None:
    check = [
        (MathVerifier(), row("72", "#### 72")),
        (JSONSchemaVerifier(), row({"a": 1}, '{"a": 1}', schema=SCHEMA)),
        (CodeVerifier(), row(None, "def f(x): return x + 1", tests=TESTS)),
    ]
    for verifier, prompt in check:
        assert list(check_controls(Rows(prompt), [verifier])) == []


GOLD_F = "def f(x):\n    return x + 1"
# Gold programs of a function f.
GOLDS = {
    "fenced": f"```python\n{GOLD_F}\n```",
    "a lambda": "```python\nf = lambda x: x + 1\n```",
    "calls when it loads": f"```python\ndef build():\n    return [f(0)]\n{GOLD_F}\nT = build()\nassert T == [1]\n```",
    "tildes": f"~~~python\n{GOLD_F}\n~~~",
    "carriage returns": f"```python\n{GOLD_F}\n```".replace("\n", "\r\n"),
    "a title": f'```python title="a.py"\n{GOLD_F}\n```',
    "an example first": f"Input:\n```\n1\n```\nProgram:\n```python\n{GOLD_F}\n```",
    "imports first": f"```python\nimport math\n```\n```python\n{GOLD_F}\n```",
    "a constant last": "```python\ndef f(x):\n    return x + ONE\n```\n```python\nONE = 1\n```",
    "a thought": f"<think>\n```python\nx = 1\n```\n</think>\n```python\n{GOLD_F}\n```",
    "an exit last": f"```python\nimport sys\n{GOLD_F}\nsys.exit(0)\n```",
    "no fence": GOLD_F,
}


@pytest.fixture(scope="module")
def code_verifier() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(workers=1)
    yield verifier
    verifier.stop()


@pytest.mark.parametrize("name", GOLDS)
def test_a_wrong_program_loads_and_is_rejected_by_tests_alone(code_verifier: CodeVerifier, name: str) -> None:
    prompt = row(None, GOLDS[name], tests=TESTS)
    (wrong,) = wrong_completions(prompt, GOLDS[name])
    weak = row(None, GOLDS[name], tests="assert f(1)")
    assert list(check_controls(Rows(prompt), [code_verifier], ["train"])) == []
    assert rewarded(code_verifier, [prompt.sample(wrong)])[0][1] == 0.5
    assert [finding.control for finding in check_controls(Rows(weak), [code_verifier], ["train"])] == ["wrong"]


METHOD = "class Solution:\n    def f(self, x):\n        return x + 1"
SCRIPT = "```python\ndef g(n):\n    return n + 1\n```\n```python\nprint(g(int(input())))\n```"


@pytest.mark.parametrize(
    ("gold", "metadata"),
    [
        (METHOD, {"tests": "assert f(1) == 2", "entry_point": "Solution().f"}),
        (METHOD, {"tests": "assert f(1) == 2"}),
        (METHOD, {"io": {"fn_name": "f", "inputs": [[1]], "outputs": [2]}}),
        (SCRIPT, {"io": [{"stdin": "1", "stdout": "2"}]}),
        (None, {"tests": "assert f(1) == 2", "entry_point": "Solution().f"}),
        (None, {"io": [{"stdin": "1", "stdout": "2"}]}),
    ],
)
def test_a_wrong_program_of_other_rows(code_verifier: CodeVerifier, gold: str | None, metadata: dict[str, Any]) -> None:
    prompt = row(None, gold, **metadata)
    (wrong,) = wrong_completions(prompt, gold)
    assert list(check_controls(Rows(prompt), [code_verifier], ["train"])) == []
    assert rewarded(code_verifier, [prompt.sample(wrong)])[0][1] == 0.5


class Lax(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        return Verdict(True, True)


def test_a_verifier_that_accepts_everything_is_reported() -> None:
    task = Rows(row("1", "#### 1"), row("2", "two"), row("3", "#### 3"))
    failures = list(check_controls(task, [Lax()]))
    assert [(failure.row, failure.verifier, failure.control, failure.completion) for failure in failures] == [
        (0, "Lax", "wrong", "#### 2"),
        (2, "Lax", "wrong", "#### 4"),
    ]
    assert str(failures[0]) == "train row 0: Lax accepts '#### 2', which is certainly wrong"


def test_a_verifier_may_ignore_the_answer_if_another_one_judges_it() -> None:
    task = Rows(row("1", "#### 1"), row("2", "two"))
    (failure,) = check_controls(task, [Lax(), MathVerifier()])
    assert (failure.row, failure.verifier, failure.control) == (1, "MathVerifier", "gold")
    assert str(failure).startswith("train row 1: MathVerifier rejects 'two': No final answer")


class Graded(Verifier):
    """Gives a reward alone, and breaks on some answers."""

    def verify(self, sample: Sample) -> Verdict:
        if "two" in sample.completion:
            raise OSError("gone")
        return Verdict(False, False, score=0.3, reward_alone=True)


def test_a_reward_that_tells_nothing_correct_does_not_hide_a_broken_verifier() -> None:
    task = Rows(row("1", "#### 1"), row("2", "two"), row("3", "#### 3"))
    note, failure = check_controls(task, [Graded()])
    assert (note.row, note.control) == (0, "reward")
    assert (failure.row, failure.control) == (1, "gold")
    assert str(failure) == "train row 1: Graded cannot judge 'two': OSError: gone"


def test_a_run_checks_a_sample_of_rows() -> None:
    rows = [row(str(number), f"#### {number}" if number % 2 else "broken") for number in range(80)]
    (warning,) = check_sample(Rows(*rows), "train", rows, [MathVerifier()])
    assert warning.startswith(
        "data.task: the verifier rejects the gold answer in 8 of 8 rows: train row 0: MathVerifier rejects 'broken': "
    )
    (warning,) = check_sample(Rows(*rows[1::2]), "train", rows[1::2], [Lax()])
    assert warning.startswith("data.task: the verifiers accept an answer that is certainly wrong in 8 of 8 rows: ")
    assert check_sample(Rows(*rows[1::2]), "train", rows[1::2], [MathVerifier(), Lax()]) == []


def test_rows_without_a_gold_completion_get_only_the_wrong_answer_control() -> None:
    rows = [row(None, None, schema=SCHEMA)]
    assert check_sample(Rows(*rows), "val", rows, [JSONSchemaVerifier()]) == []
    (warning,) = check_sample(Rows(*rows), "val", rows, [Lax()])
    assert "certainly wrong" in warning


class TypeOnly(Verifier):
    """Accepts any JSON document of the given types."""

    def __init__(self, *kinds: type) -> None:
        super().__init__()
        self.kinds = kinds

    def verify(self, sample: Sample) -> Verdict:
        fits = isinstance(json.loads(sample.completion), self.kinds)
        return Verdict(fits, fits)


def test_a_schema_without_a_gold_document_must_reject_something() -> None:
    task = Rows(row(None, '{"a": 1}', schema=SCHEMA))
    assert list(check_controls(task, [JSONSchemaVerifier(), TypeOnly(dict)])) == []
    (failure,) = check_controls(task, [TypeOnly(dict, list, str, float, type(None))])
    assert failure.control == "wrong"


def test_a_row_without_a_gold_completion_must_be_judgeable() -> None:
    runs, asserts_nothing = "def test_f():\n    assert f(1) == 2", "def helper():\n    assert f(1) == 2"
    task = Rows(row(None, None, tests=runs), row(None, None, tests=asserts_nothing))
    (failure,) = check_controls(task, [CodeVerifier()])
    assert (failure.row, failure.control) == (1, "judged")
    (warning,) = check_sample(task, "train", task.rows, [CodeVerifier()])
    assert warning.startswith("data.task: a verifier breaks on any answer in 1 of 2 rows: train row 1: CodeVerifier")
    assert "train row 1: CodeVerifier cannot judge 'def f" in str(failure).replace("```python\\n", "")


def test_a_row_without_any_answer_has_nothing_to_control() -> None:
    with pytest.raises(ConfigError, match="none"):
        list(check_controls(Rows(row()), [Lax()]))
    assert check_sample(Rows(row()), "train", [row()], [Lax()]) == []
