"""Verdicts explain themselves to people, and their feedback keeps what is expected to itself."""

from __future__ import annotations

import pytest
from code_cases import default_verifier, fenced, verdict_of  # noqa: F401  (a fixture)

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier

F = "def f(x):\n    return [x, 7]"

# name: (tests, what was expected, what the reason says)
EXPLAINED = {
    "a comparison": ("assert f(1) == [1, 8]", "[1, 8]", ["assert f(1) == [1, 8]", "It gave [1, 7]"]),
    "the second of two": ("assert f(2) == [2, 7]\nassert f(3) == 4242", "4242", ["Test 2 of 2", "It gave [3, 7]"]),
    "the other way round": ("assert 4242 == f(3)", "[3, 7]", ["It gave 4242"]),
    "no comparison": ("assert not f(1)", "", ["assert not f(1)"]),
    "after a comparison": ("assert f(1) == [1, 7]\nassert not f(1)", "", ["Test 2 of 2", "assert not f(1)"]),
    "an exception": ("assert f() == 1", "", ["assert f() == 1", "TypeError raised"]),
    "a test function": ("def test_f():\n    y = f(1)\n    assert y == 4242", "4242", ["assert y == 4242", "[1, 7]"]),
    "unittest": ("import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n"
                 "        self.assertEqual(f(1), 4242)", "", ["self.assertEqual(f(1), 4242)"]),
    "a raise": ("if f(1) != 4242:\n    raise AssertionError", "", ["raise AssertionError"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_failed_test_is_shown(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    tests, expected, parts = EXPLAINED[name]
    verdict = verdict_of(default_verifier, F, tests)
    assert verdict.explanation is not None
    assert verdict.explanation.extracted == F
    assert verdict.explanation.expected == expected
    assert all(part in verdict.explanation.reason for part in parts), verdict.explanation.reason
    assert "4242" not in verdict.feedback


def test_outputs_and_calls_are_shown(default_verifier: CodeVerifier) -> None:  # noqa: F811
    verdict = verdict_of(default_verifier, "print(input())", io=[{"stdin": "17", "stdout": "4242"}])
    assert verdict.explanation is not None
    assert verdict.explanation.expected == "4242"
    assert "the input '17'" in verdict.explanation.reason
    assert "It gave 17" in verdict.explanation.reason
    verdict = verdict_of(default_verifier, F, io={"fn_name": "f", "inputs": [[17]], "outputs": [4242]})
    assert verdict.explanation is not None
    assert verdict.explanation.expected == "4242"
    assert "the call with (17)" in verdict.explanation.reason
    assert "It gave [17, 7]" in verdict.explanation.reason


def test_every_verdict_explains_itself(default_verifier: CodeVerifier) -> None:  # noqa: F811
    passed = verdict_of(default_verifier, F, "assert f(1)[0] == 1")
    assert passed.explanation == (F, "", "All tests passed.")
    for completion, reason in (
        ("```js\nf\n```", "No program was found"), ("x" * 200_001, "too long"), ("<think>x", "never ends"),
        (fenced("def f(x:"), "does not compile"), (fenced("x = y"), "NameError"),
        (fenced("x = 1"), "does not define f"), (fenced("def f(x):\n    while True: pass"), "longer than the limit"),
    ):  # fmt: skip
        verdict = default_verifier.verify(Sample("", completion, metadata={"tests": "assert f(1) == 2"}))
        assert verdict.explanation is not None
        assert reason in verdict.explanation.reason
        assert verdict.feedback == verdict.explanation.reason


def test_the_program_that_was_run_is_shown(default_verifier: CodeVerifier) -> None:  # noqa: F811
    loop = "def f(x):\n    while True: pass"
    for blocks, run in (
        (["def f(x):\n    return 0", F, "print(f(1))"], F), ([F, "print(f(1))"], F), ([loop, "f(1)"], loop),
        (["import math", F], f"import math\n\n\n{F}"),
    ):  # fmt: skip
        completion = "\n".join(map(fenced, blocks))
        verdict = default_verifier.verify(Sample("", completion, metadata={"tests": "assert f(1) == 2"}))
        assert verdict.explanation is not None
        assert verdict.explanation.extracted == run


def test_an_object_of_the_program_is_shown_without_asking_it(default_verifier: CodeVerifier) -> None:  # noqa: F811
    program = "class A:\n    def __repr__(s):\n        while True: pass\ndef f(x):\n    return [A()]"
    verdict = verdict_of(default_verifier, program, "assert f(1) == 2")
    assert verdict.explanation is not None
    assert "It gave [<an object of the program>]" in verdict.explanation.reason
    huge = verdict_of(default_verifier, "def f(x):\n    return [10**9000] * 10**5", "assert f(1) == 2")
    assert huge.explanation is not None
    assert len(huge.explanation.reason) < 3000
