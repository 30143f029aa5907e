"""The shapes of rows that public data sets have, entry points, preludes, and what counts as the same output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from code_cases import default_verifier, marked, verdict_of  # noqa: F401  (a fixture)
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Tabular
from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, judge
from grpo_lightning.verifiers.code.rows import read_row
from grpo_lightning.verifiers.code.sandbox.entry_point import EntryPoint
from grpo_lightning.verifiers.code.sandbox.outputs import Allowance

ADD = "def add(a, b):\n    return a + b"
ADD_METHOD = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b"
ADD_SCRIPT = "print(sum(map(int, input().split())))"
CHECK = "def check(candidate):\n    assert candidate(a=1, b=2) == 3\n    assert candidate(4, 5) == 9\n"

# The table in docs/verifiers.md: (columns of a row, metadata_columns, a right program). The wrong one adds one more.
DATA_SETS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "MBPP": ({"test_list": ["assert add(1, 2) == 3", "assert add(4, 5) == 9"]}, {"tests": "test_list"}, ADD),
    "HumanEval": (
        {"test": f"METADATA = {{}}\n\n{CHECK}", "entry_point": "add"},
        {"tests": "test", "entry_point": "entry_point"}, ADD,
    ),
    "KodCode": (
        {"test": "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"}, {"tests": "test"}, ADD,
    ),
    "LeetCode": (
        {"test": CHECK, "entry_point": "Solution().add", "prompt": "from typing import *\nimport math\n"},
        {"tests": "test", "entry_point": "entry_point", "prelude": "prompt"},
        ADD_METHOD.replace("int)", "Optional[int])"),
    ),
    "APPS, scripts": (
        {"input_output": json.dumps({"inputs": ["1 2\n", "4 5\n"], "outputs": ["3\n", "9\n"]})},
        {"io": "input_output"}, ADD_SCRIPT,
    ),
    "APPS, lines": (
        {"input_output": {"inputs": [["1 2", ""]], "outputs": [["3"]]}}, {"io": "input_output"}, ADD_SCRIPT,
    ),
    "APPS, a function": (
        {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [3, 9]})},
        {"io": "input_output"}, ADD_METHOD,
    ),
    "APPS, wrapped results": (
        {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [[3], [9]]})},
        {"io": "input_output"}, ADD,
    ),
    "LiveCodeBench, scripts": (
        {"public_test_cases": json.dumps([{"input": "1 2\n", "output": "3", "testtype": "stdin"}])},
        {"io": "public_test_cases"}, ADD_SCRIPT,
    ),
    "LiveCodeBench, a function": (
        {"public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
         "metadata": json.dumps({"func_name": "add"})},
        {"io": "public_test_cases", "entry_point": "metadata"}, ADD_METHOD,
    ),
    "CodeContests": (
        {"public_tests": {"input": ["1 2\n", "4 5\n"], "output": ["3\n", "9\n"]}}, {"io": "public_tests"}, ADD_SCRIPT,
    ),
    "one pair": ({"io": {"input": "1 2", "output": "3"}}, ["io"], ADD_SCRIPT),
    "calls of an entry point": (
        {"io": {"inputs": [[1, 2]], "outputs": [3]}, "name": "add"}, {"io": "io", "entry_point": "name"}, ADD,
    ),
    "pairs": ({"io": [{"stdin": "1 2", "stdout": "3"}]}, ["io"], ADD_SCRIPT),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_SETS)
def test_rows_of_public_data_sets(default_verifier: CodeVerifier, tmp_path: Path, name: str) -> None:  # noqa: F811
    row, columns, program = DATA_SETS[name]
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "Add.", "question": "Add."} | row))
    task = Tabular(str(tmp_path), prompt_column="question", answer_column=None, metadata_columns=columns)
    (prompt,) = task.prompts("test")
    wrong = program.replace("a + b", "a + b + 1").replace("sum(", "1 + sum(")
    assert wrong != program
    samples = [Sample(prompt.messages, text, metadata=prompt.metadata) for text in (program, wrong)]
    assert [marked(verdict) for verdict in judge(default_verifier, samples)] == [1.0, 0.5]


def test_the_documented_mapping_is_the_tested_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "verifiers.md").read_text()
    for row, columns, _ in DATA_SETS.values():
        if isinstance(columns, Mapping) and "io" not in row:
            assert f"`{{{', '.join(f'{key}: {value}' for key, value in columns.items())}}}`" in text, columns


POW = "def pow(x, y): return x ** y + 0.5"
# Ways to write the tests of a function f: (metadata).
WAYS: dict[str, dict[str, Any]] = {
    "a module": {"tests": "import solution\nassert solution.f(1) == 2"},
    "a module by another name": {"tests": "import sys, solution as s\ndef test_f():\n    assert s.f(1) == 2"},
    "a function by another name": {"tests": "def test_f():\n    from solution import f as g, f\n"
                                            "    assert g(1) == f(1) == 2"},
    "everything": {"tests": "from solution import *\nassert f(1) == 2"},
    "a built-in's name": {"tests": "from solution import pow, f\nassert f(1) == 2\nassert pow(2, 3) == 8.5"},
    "a list as JSON text": {"tests": json.dumps(["assert f(1) == 2", "assert f(2) == 3"])},
    "text that is no JSON": {"tests": "[x for x in '']\nassert f(1) == 2"},
    "a call as an entry point": {"tests": "assert candidate(1) == 2", "entry_point": " f() "},
    "a test of the candidate": {"tests": "def test(candidate):\n    assert candidate(1) == 2", "entry_point": "f"},
    "tests of the candidate": {"tests": "def test_a(candidate):\n    assert candidate(1) == 2\ndef test_b(candidate):\n"
                                        "    assert candidate(2) == 3\ntest_a(f)", "entry_point": "f"},
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_write_tests(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    verdicts = [verdict_of(default_verifier, f"{POW}\ndef f(x): return x + {n}", **WAYS[name]) for n in (1, 2)]
    assert [marked(verdict) for verdict in verdicts] == [1.0, 0.5]


# Ways to capture what a function prints.
CAPTURES = {
    "redirect_stdout": "import contextlib, io\ns = io.StringIO()\nwith contextlib.redirect_stdout(s):\n    f(1)\n{}",
    "sys.stdout": "import io, sys\ndef test_f():\n    old, sys.stdout = sys.stdout, io.StringIO()\n    f(1)\n"
                  "    s, sys.stdout = sys.stdout, old\n    {}",
    "patch": "import io\nfrom unittest.mock import patch\n@patch('sys.stdout', new_callable=io.StringIO)\n"
             "def capture(s):\n    f(1)\n    return s\ns = capture()\n{}",
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_what_a_program_prints_may_be_captured(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    tests = CAPTURES[name].format("assert s.getvalue() == 'é 2\\n'")
    programs = [f"print('loaded')\ndef f(x):\n    print('é', x + {n})" for n in (1, 2)]
    assert [marked(verdict_of(default_verifier, program, tests)) for program in programs] == [1.0, 0.5]


def test_a_program_may_close_or_flood_its_output(default_verifier: CodeVerifier) -> None:  # noqa: F811
    tests = "import sys\nsys.stdout.flush()\nassert f(1) == 2"
    for line, reward in (("sys.stdout.close()", 1.0), ("sys.stdout = None", 1.0), ("print('x' * 10**8)", 0.5)):
        assert marked(verdict_of(default_verifier, f"import sys\ndef f(x):\n    {line}\n    return 2", tests)) == reward


CALLS: dict[str, tuple[dict[str, Any], str, float]] = {
    "tuples for lists": ({"fn_name": "f", "inputs": [[1]], "outputs": [[1, [2]]]}, "return (1, (2,))", 1.0),
    "the item of a longer list": ({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1, 2], [1]]}, "return 1", 0.5),
    "a dict with numbers for keys": (
        {"fn_name": "f", "inputs": [[{"1": 5}]], "outputs": [{"2": 5}]}, "return {2: x[1]}", 1.0,
    ),
    "a dict with other keys": (
        {"fn_name": "f", "inputs": [[{"a": 5}]], "outputs": [{"b": 5}]}, "return {'b': x['a']}", 1.0,
    ),
    "a text": ({"fn_name": "f", "inputs": [["a"]], "outputs": ["b"]}, "return 'c'", 0.5),
    "an exception": ({"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "return 1 / 0", 0.5),
    "a truth value for a number": ({"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "return True", 0.5),
    "truth values for numbers": ({"fn_name": "f", "inputs": [[1]], "outputs": [[0, 1]]}, "return [False, True]", 0.5),
    "a truth value": ({"fn_name": "f", "inputs": [[1]], "outputs": [True]}, "return True", 1.0),
    "nothing": ({"fn_name": "f", "inputs": [[1]], "outputs": [1]}, "pass", 0.5),
    "a near number": ({"fn_name": "f", "inputs": [[1]], "outputs": [0.3]}, "return 0.1 + 0.2", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_their_results(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    io, body, reward = CALLS[name]
    assert marked(verdict_of(default_verifier, f"def f(x):\n    {body}", io=io)) == reward


def test_an_object_that_pleases_is_no_result(default_verifier: CodeVerifier) -> None:  # noqa: F811
    yes = "class Y(list):\n    def __eq__(s, o): return True\ndef f(x):\n    return {}"
    io = {"fn_name": "f", "inputs": [[1]], "outputs": [[5, 6]]}
    for made in ("Y()", "[Y(), Y()]", "object()", "(5, Y())"):
        assert marked(verdict_of(default_verifier, yes.format(made), io=io)) == 0.5


METHODS = """
class Solution:
    k = 1
    def f(self, x):
        return x + self.k
    @staticmethod
    def g(x):
        return x + 2
"""
INITIALISED = "class Solution:\n    def __init__({}\n    def f(s, x):\n        return 2"
ENTRY_POINTS = {
    "an instance": (METHODS, "Solution().f", "def check(candidate):\n    assert candidate(1) == 2", 1.0),
    "a static method": (METHODS, "Solution.g", "def check(candidate):\n    assert candidate(1) == 3", 1.0),
    "a static method of an instance": (METHODS, "Solution().g", "assert candidate(1) == 3", 1.0),
    "a function in the class": (METHODS, "f", "def check(candidate):\n    assert candidate(1) == 2", 1.0),
    "a function in the class, by name": (METHODS, None, "assert f(1) == 2 and g(1) == 3", 1.0),
    "the method by its name": (METHODS, "Solution().f", "assert f(1) == 2", 1.0),
    "the class itself": (METHODS, "Solution().f", "assert Solution().f(1) == 2", 1.0),
    "a wrong method": (METHODS, "Solution().f", "assert f(1) == 3", 0.5),
    "no such class": (METHODS, "Other().f", "assert f(1) == 2", 0.0),
    "no such method": (METHODS, "Solution().h", "assert h(1) == 2", 0.0),
    "a method without an instance": (METHODS, "Solution.f", "assert candidate(None, 1) == 2", 0.5),
    "no class but a function": ("def f(x):\n    return x + 1", "Solution().f", "assert f(1) == 2", 0.0),
    "a class that needs arguments": (INITIALISED.format("s, x): pass"), "Solution().f", "assert f(1) == 2", 0.0),
    "a class that raises": (INITIALISED.format("s): raise KeyError"), "f", "assert f(1) == 2", 0.0),
    "a class with a constructor": (INITIALISED.format("s): pass"), "f", "assert f(1) == 2", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    program, entry_point, tests, reward = ENTRY_POINTS[name]
    assert marked(verdict_of(default_verifier, program, tests, entry_point=entry_point)) == reward


@pytest.mark.parametrize("text", ["f", "Solution.f", "Solution().f", "_a1", "été"])
def test_an_entry_point_reads_back(text: str) -> None:
    assert str(EntryPoint.read(text)) == text


@pytest.mark.parametrize("text", ["", "f(", "f()", "a.b.c", "Solution()", "1f", "Solution().", "Solution(1).f", "a b"])
def test_what_is_no_entry_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a function's name"):
        EntryPoint.read(text)


LISTS = "def f(xs: List[int]) -> int:\n    return len(xs)"


def test_a_prelude_is_run_before_the_program(default_verifier: CodeVerifier) -> None:  # noqa: F811
    tests, prelude = "assert f([1]) == 1", "from typing import *\nimport sys\n"
    assert marked(verdict_of(default_verifier, LISTS, tests)) == 0.0
    assert marked(verdict_of(default_verifier, LISTS, tests, prelude=prelude)) == 1.0
    future = f"from __future__ import annotations\n{LISTS}"
    assert marked(verdict_of(default_verifier, future, tests, prelude=prelude)) == 1.0
    script = "print(sys.stdin.read())"
    pairs = [{"stdin": text, "stdout": text} for text in "ab"]
    assert marked(verdict_of(default_verifier, script, io=pairs, prelude=prelude)) == 1.0
    own = CodeVerifier(workers=1, prelude=prelude)
    assert marked(verdict_of(own, LISTS, tests)) == 1.0
    # A row's own takes its place.
    assert marked(verdict_of(own, LISTS, tests, prelude="x = 1")) == 0.0
    own.stop()


def test_helpers_of_a_prelude_are_not_the_programs(default_verifier: CodeVerifier) -> None:  # noqa: F811
    """As in LeetCode's rows about lists, whose nodes and comparison the prelude defines."""
    prelude = "class Node:\n    def __init__(self, v):\n        self.v = v\n"
    prelude += "def same(a, b):\n    return a.v == b.v\n"
    tests = "def check(candidate):\n    assert same(candidate(Node(1)), Node(2))"
    solution = "class Solution:\n    def f(self, node):\n        return Node(node.v + 1)\n"
    wrong = solution.replace("+ 1", "+ 2")
    cheat = f"{wrong}def same(a, b):\n    return True\n"
    for program, reward in ((solution, 1.0), (wrong, 0.5), (cheat, 0.5)):
        verdict = verdict_of(default_verifier, program, tests, entry_point="Solution().f", prelude=prelude)
        assert marked(verdict) == reward


@pytest.mark.parametrize("prelude", ["x = (", "import nothing_there", "raise KeyError", "import os\nos._exit(0)"])
def test_a_broken_prelude_is_an_error(default_verifier: CodeVerifier, prelude: str) -> None:  # noqa: F811
    verdict = verdict_of(default_verifier, "def f():\n    return 1", "assert f() == 1", prelude=prelude)
    assert "cannot use the row's tests" in str(verdict.error)


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "lengths that differ": ({"io": {"inputs": ["1"], "outputs": []}}, "metadata['io']"),
    "no outputs": ({"io": {"inputs": ["1"]}}, "metadata['io']"),
    "no JSON": ({"io": "eJx1"}, "metadata['io'] to be JSON"),
    "a number": ({"io": 5}, "metadata['io']"),
    "numbers": ({"io": {"inputs": [1], "outputs": [1]}}, "metadata['io']"),
    "blank outputs": ({"io": [{"stdin": "1", "stdout": "\n"}, {"stdin": "2", "stdout": ""}]}, "not blank"),
    "several types": ({"io": [{"input": "1", "output": "1", "testtype": kind} for kind in ("stdin", "functional")]},
                      "one testtype"),
    "calls of nothing": ({"io": [{"input": "1", "output": "1", "testtype": "functional"}]}, "metadata['entry_point']"),
    "a result that is no JSON": ({"io": [{"input": "1", "output": "x", "testtype": "functional"}], "entry_point": "f"},
                                 "to be JSON"),
    "a prelude that is no text": ({"tests": "assert f()", "prelude": 5}, "metadata['prelude']"),
    "an entry point that is no name": ({"tests": "assert f()", "entry_point": 5}, "metadata['entry_point']"),
}  # fmt: skip


def test_one_blank_output_among_others_is_an_output() -> None:
    assert read_row({"io": [{"stdin": "1", "stdout": ""}, {"stdin": "2", "stdout": "3"}]}).io
    assert read_row({"io": [{"stdin": "1", "stdout": ""}], "tests": "assert f(1)"}).io


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_shape_is_refused_by_its_key(name: str) -> None:
    metadata, reason = UNKNOWN[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read_row(metadata)
    assert reason in str(raised.value)


def test_output_is_text_by_default(default_verifier: CodeVerifier) -> None:  # noqa: F811
    for printed, reward in (("0.3333333333", 1.0), ("0.333333", 0.5)):
        pairs = [{"stdin": "", "stdout": "0.3333333333"}]
        assert marked(verdict_of(default_verifier, f"print('{printed}')", io=pairs)) == reward


def test_numbers_in_output_may_be_off(default_verifier: CodeVerifier) -> None:  # noqa: F811
    for options in ({"rel_tol": 1e-4}, {"abs_tol": 1e-4}):
        verifier = CodeVerifier(workers=1, **options)  # type: ignore[arg-type]
        pairs = [{"stdin": "", "stdout": "0.3333333333"}]
        assert marked(verdict_of(verifier, "print(0.33333)", io=pairs)) == 1.0
        assert marked(verdict_of(verifier, "print(0.33)", io=pairs)) == 0.5
        call = {"fn_name": "f", "inputs": [[1]], "outputs": [[0.3, 2]]}
        assert marked(verdict_of(verifier, "def f(x):\n    return 0.1 + 0.2, 2.0", io=call)) == 1.0
        assert marked(verdict_of(verifier, "def f(x):\n    return 0.31, 2.0", io=call)) == 0.5
        verifier.stop()


@pytest.mark.parametrize(
    ("given_text", "expected", "same"),
    [
        ("0.333333", "0.3333333333", True), ("3.0", "3", True), ("3", "3.0", True), ("3.1", "3", False),
        ("1000001", "1000000", False), ("1000000", "1000000", True), ("007", "7", True), ("+7", "7", True),
        ("1e3", "1000", True), ("1_000", "1000", False), ("nan", "nan", True), ("nan", "1", False),
        ("inf", "1e99999", False), ("1e99999", "5", False), ("1e99999", "2e99999", False), ("-0.0", "0", True),
        ("x 1.0 y", "x 1.00001 y", True), ("x 1.0 z", "x 1.0 y", False), ("1 2", "1 2 3", False),
        ("1\n2", "1 2", False),
        ("1.0  2.0", "1.0 2.0", True), ("", "1", False), ("1,0", "1,1", False), ("0x1", "1", False),
        ("1.0\n\n", "1", True), ("9" * 5000, "1", False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_output(given_text: str, expected: str, same: bool) -> None:
    assert Allowance(rel_tol=1e-4).same_output(given_text, expected) is same


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_the_allowance_is_that_of_the_formula(one: float, other: float) -> None:
    allowed = one == other or abs(one - other) <= max(1e-3 * abs(other), 1e-6)
    assert Allowance(1e-3, 1e-6).same_output(repr(one), repr(other)) == allowed
    assert Allowance(1e-3, 1e-6).same_value(one, other) == allowed
    assert Allowance().same_value(one, other) == (one == other)


@pytest.mark.parametrize("options", [{"rel_tol": -1}, {"rel_tol": 1}, {"abs_tol": -1}, {"abs_tol": float("inf")}])
def test_an_allowance_out_of_range_is_refused(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"CodeVerifier\.{name}: must be at least 0 and"):
        CodeVerifier(**options)  # type: ignore[arg-type]
