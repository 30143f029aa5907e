"""What counts are the assertions that are executed: a row whose tests assert nothing is an error, never a reward."""

from __future__ import annotations

import ast

import pytest
from code_cases import default_verifier, marked, verdict_of  # noqa: F401  (a fixture)

from grpo_lightning.verifiers import CodeVerifier
from grpo_lightning.verifiers.code.sandbox import assertions

RIGHT = "def f(x):\n    if x is None:\n        raise TypeError('none')\n    return x + 1"
WRONG = "def f(x):\n    return 'anything'"
NOTHING = "the tests ran without asserting anything"

# Tests that judge: the right program is rewarded, the wrong one is not.
JUDGING = {
    "lines": "assert f(1) == 2",
    "a function": "def test_f():\n    assert f(1) == 2",
    "a function with defaults": "def test_f(x=1, *, y=2):\n    assert f(x) == y",
    "a function after a helper that fails": "def helper():\n    assert False\ndef test_f():\n    assert f(1) == 2",
    "a function that the tests call themselves": "calls = []\ndef test_f():\n    calls.append(1)\n"
    "    assert f(1) == 2 and calls == [1]\ntest_f()",
    "a helper with parameters, called": "def test_one(x, y):\n    assert f(x) == y\nfor x in range(3):\n"
    "    test_one(x, x + 1)",
    "check without an entry point, called": "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
    "check without parameters": "def check():\n    assert f(1) == 2",
    "a main block": "def test_f():\n    assert f(1) == 2\nif __name__ == '__main__':\n    test_f()",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def setUp(self):\n        self.x = 1\n"
    "    def test_f(self):\n        self.assertEqual(f(self.x), 2)\nif __name__ == '__main__':\n    unittest.main()",
    "unittest, run by itself": "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n"
    "        with self.subTest(1):\n            self.assertTrue(f(1) == 2)\nunittest.main()",
    "unittest, in a function and with a runner": "import io, unittest\ndef run():\n    class T(unittest.TestCase):\n"
    "        def test_f(self):\n            self.assertTrue(True)\n            self.assertEqual(f(1), 2)\n"
    "    suite = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
    "    unittest.TextTestRunner(io.StringIO()).run(suite)\nrun()",
    "unittest with an expected exception": "from unittest import TestCase\nclass T(TestCase):\n"
    "    def test_f(self):\n        self.assertRaises(TypeError, f, None)\n"
    "        with self.assertRaises(TypeError):\n            f(None)",
    "unittest, one case skipped": "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('later')\n"
    "    def test_a(self):\n        assert False\n    def test_b(self):\n        self.assertIn(f(1), [2])",
    "a plain class": "class TestF:\n    def setup_method(self):\n        self.x = 1\n    def test_f(self):\n"
    "        assert f(self.x) == 2",
    "a raise in an if": "if f(1) != 2:\n    raise AssertionError('not 2')",
    "a raise of a helper": "def wrong(why):\n    print(why)\n    raise Exception(why)\nfor x in (1, 2):\n"
    "    if f(x) == x + 1:\n        pass\n    else:\n        wrong(x)",
    "an exit": "import sys\nif f(1) != 2:\n    sys.exit(1)",
    "a match": "match f(1):\n    case 2:\n        pass\n    case _:\n        raise AssertionError",
    "an expected exception": "try:\n    f(None)\n    assert False, 'no exception'\nexcept TypeError:\n    pass",
    "an expected exception, else": "try:\n    f(None)\nexcept TypeError:\n    pass\nelse:\n    raise ValueError",
    "an assertion in a class": "class Case:\n    assert f(1) == 2",
    "a walrus": "assert (y := f(1)) == 2 and y > 1\nassert 2 == (y := f(1))",
    "data before the assertion": "r = f(1)\nassert r == 2",
    "a loop over what the program gave": "for x in [f(1)]:\n    if x != 'other':\n        assert x == 2",
    "a list of what is there": "assert [x for x in [f(1)] if x == 2]\nassert f(1) == 2 or False",
    "a handler that asserts": "try:\n    assert f(1) == 3\nexcept AssertionError:\n    assert f(1) == 2",
    "a handler that counts": "failures = []\nfor x in (1, 2):\n    try:\n        assert f(x) == x + 1\n"
    "    except AssertionError:\n        failures.append(x)\nassert f(1)",
    "a handler of everything": "try:\n    assert f(1) + 1 == 3\nexcept Exception as e:\n    print(e)\nassert f(1)",
    "a tolerated exception": "try:\n    assert f(None) == 0\nexcept Exception:\n    pass\nassert f(1) == 2",
    "a finally that returns": "def test_f():\n    try:\n        assert f(1) == 2\n    finally:\n        return\n"
    "assert f(1)",
    "suppress": "import contextlib\nassert f(1)\nwith contextlib.suppress(AssertionError):\n    assert f(1) == 2",
    "a thread": "import threading\ndef go():\n    assert f(1) == 2\nassert f(1)\nt = threading.Thread(target=go)\n"
    "t.start()\nt.join()",
    "unittest that catches": "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        try:\n"
    "            self.assertEqual(f(1), 2)\n        except AssertionError as e:\n            print(e)\n"
    "        self.assertTrue(f(1))",
    "unittest with an expected failure": "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n"
    "        with self.assertRaises(AssertionError):\n            self.assertEqual(f(1), 3)\n"
    "        self.assertRaises(AssertionError, self.assertEqual, f(1), 3)\n        self.assertEqual(f(1), 2)",
    "a raise that is caught": "assert f(1)\ntry:\n    if f(1) != 2:\n        raise AssertionError\nexcept Exception:\n"
    "    pass",
    "numbers for messages": "assert f(1) == 2, 1\nassert isinstance(f(1), int), 2",
    "a helper that nothing needs": "def near(a, b):\n    assert abs(a - b) < 1\nassert f(1) == 2",
    "a driver that is not called, of a test that ran": "def test_f():\n    assert f(1) == 2\ndef main():\n    test_f()",
    "a helper with parameters that is not called": "def same(a, b):\n    assert f(a) == b\nassert f(1) == 2",
    "a method with parameters that is not called": "import unittest\nclass T(unittest.TestCase):\n"
    "    def same(self, x):\n        self.assertEqual(f(x), x)\n    def test_f(self):\n"
    "        self.assertEqual(f(1), 2)",
    "a helper for a branch that is not taken": "def zero():\n    assert f(0) == 1\ndef test_f():\n"
    "    if f(1) != 2:\n        zero()\n    assert f(1) == 2",
    "one of several values": "for y in (3, 2):\n    try:\n        assert f(1) == y\n        break\n"
    "    except AssertionError:\n        pass\nelse:\n    raise AssertionError",
    "a chain, a negation, a call": "assert 1 < f(1) < 3\nassert not f(1) != 2\nassert isinstance(f(1), int)",
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGING)
def test_executed_assertions_judge(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    right, wrong = (verdict_of(default_verifier, program, JUDGING[name]) for program in (RIGHT, WRONG))
    assert (marked(right), marked(wrong)) == (1.0, 0.5), (right, wrong)


WEAK = "def test_weak():\n    assert f(1) is not None\n"
WEAK_CASE = (
    "import unittest\nclass U(unittest.TestCase):\n    def test_weak(self):\n        self.assertIsNotNone(f(1))\n"
)
IN_CLASS = "class TestF:\n    @{0}\n    def {1}: self.x = 1\n    def test_f(self):\n        assert f(self.x) == 2"
GIVES_X = "def {0}:\n    global X\n    X = 1\ndef test_f():\n    assert f(X) == 2"
ENDS = "import sys, unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)\n"

# What runs beside a weak assertion that both programs pass, because a runner of tests would run it.
COLLECTED = {
    "a main block": WEAK + "if __name__ == '__main__':\n    assert f(1) == 2",
    "a main function": WEAK + "def main():\n    assert f(1) == 2\nif __name__ == '__main__':\n    main()",
    "a static method": WEAK + "class TestF:\n    @staticmethod\n    def test_f():\n        assert f(1) == 2",
    "a class method": WEAK + "class TestF:\n    @classmethod\n    def test_f(cls):\n        assert f(1) == 2",
    "an inherited method": "class Base:\n    def test_f(self):\n        assert f(1) == 2\nclass TestF(Base):\n"
    "    def test_b(self):\n        assert f(1) is not None",
    "a class with an inherited __init__": "class Base:\n    def __init__(self, x=1):\n        self.x = x\n"
    "class TestF(Base):\n    def test_f(self):\n        assert f(self.x) == 2\nassert f(1)",
    "a class inside": "class TestF:\n    class TestG:\n        def test_f(self):\n            assert f(1) == 2\n"
    "    def test_b(self):\n        assert f(1) is not None",
    "a function in a branch": WEAK + "if True:\n    def test_f():\n        assert f(1) == 2",
    "a function that is made": WEAK + "def make(a, b):\n    def test():\n        assert f(a) == b\n    return test\n"
    "test_f = make(1, 2)",
    "runTest": WEAK_CASE + "class T(unittest.TestCase):\n    def runTest(self):\n        self.assertEqual(f(1), 2)",
    "setup_method": IN_CLASS.format("(lambda g: g)", "setup_method(self, method)"),
    "setup_class": IN_CLASS.format("classmethod", "setup_class(self)"),
    "setup_module": GIVES_X.format("setup_module()"),
    "setup_module of the module": GIVES_X.format("setup_module(module)"),
    "setup_function": GIVES_X.format("setup_function(function)"),
    "setUpModule": "import unittest\n" + GIVES_X.format("setUpModule()"),
    "an exit at the end": "import sys\ndef test_f():\n    assert f(1) == 2\ntest_f()\nsys.exit(0)",
    "an exit of the main block": "import sys\ndef suite():\n    assert f(1) == 2\nif __name__ == '__main__':\n"
    "    suite()\n    sys.exit(0)",
    "an exit of unittest": ENDS + "if __name__ == '__main__':\n    sys.exit(unittest.main())",
    "an exit that depends": WEAK + "if f(1) != 2:\n    exit()",
    "an exit that depends, in main": "def main():\n    if f(1) != 2:\n        exit(0)\n    assert f(1)\n    exit(0)\n"
    "main()",
}


@pytest.mark.parametrize("name", COLLECTED)
def test_what_a_runner_would_run_is_run(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    right, wrong = (verdict_of(default_verifier, program, COLLECTED[name]) for program in (RIGHT, WRONG))
    assert (marked(right), marked(wrong)) == (1.0, 0.5), (right, wrong)


UNCALLED = "def run():\n    assert f(1) == 2"

# Tests that judge nothing: an error for any program that they do not fail.
EMPTY = {
    "an uncalled helper": ("def helper():\n    assert f(1) == 2\nf(1)", NOTHING),
    "a branch that is not taken": ("import sys\nif sys.argv == ['x']:\n    assert f(1) == 2", NOTHING),
    "an empty loop": ("for x in []:\n    assert f(x) == 2", NOTHING),
    "an empty list of cases": ("def test_f():\n    for x, y in []:\n        assert f(x) == y", NOTHING),
    "an assertion that cannot fail": ("f(1)\nassert True\nassert not None\nassert 'text'", NOTHING),
    "an assertion of a tuple": ("assert (f(1) == 3, 'a message')", NOTHING),
    "a list of a comparison": ("assert [f(1) == 2]", NOTHING),
    "a dict of a comparison": ("assert {'a': f(1) == 2}", NOTHING),
    "a list of comparisons": ("assert [f(x) == y for x, y in [(1, 2)]]", NOTHING),
    "a generator": ("assert (f(x) == y for x, y in [(1, 2)])", NOTHING),
    "a lambda": ("assert lambda: f(1) == 2", NOTHING),
    "a text": ("assert f'{f(1)} == 2'", NOTHING),
    "a constant that is true": ("assert f(1) == 2 or 3", NOTHING),
    "a comparison that is not None": ("assert (f(1) == 2) is not None", NOTHING),
    "the expected value as a message": ("assert f(1), 2", "compares nothing"),
    "the expected value as a message, unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertTrue(f(1), [2])",
        "compares nothing"),
    "a raise that cannot happen": ("f(1)\nif False:\n    raise AssertionError", NOTHING),
    "a raise of a solution of its own": ("def mine(x):\n    if x < 0:\n        raise ValueError\n    return x + 1\n"
                                         "print(f(1) == mine(1))", NOTHING),
    "a unittest class without an assertion": ("import unittest\nclass T(unittest.TestCase):\n"
                                              "    def test_f(self):\n        f(1)\n    def helper(self):\n"
                                              "        self.assertEqual(f(1), 2)", NOTHING),
    "a skipped case": ("import unittest\n@unittest.skip('all')\nclass T(unittest.TestCase):\n    def test_f(self):\n"
                       "        self.assertEqual(f(1), 2)", NOTHING),
    "a fixture": ("def test_f(value):\n    assert f(value) == 2", "test_f takes value, and there is no pytest"),
    "an asynchronous test": ("async def test_f():\n    assert f(1) == 2", "test_f is asynchronous"),
    "pytest": ("import pytest\n@pytest.mark.slow\ndef test_f():\n    assert f(1) == 2", "import pytest"),
    "a function of its own": ("def f(x):\n    return 2\nassert f(1) == 2", "use nothing of the program"),
    "nothing of the program": ("assert 1 + 1 == 2", "use nothing of the program"),
    "an assertion about Python": ("import sys\nassert sys.version_info >= (3,)\n" + UNCALLED, NOTHING),
    "an assertion about nothing": ("assert 1 + 1 == 2\n" + UNCALLED, NOTHING),
    "a guard about Python": ("import sys\nif sys.version_info < (3,):\n    raise Exception('3')\n" + UNCALLED, NOTHING),
    "an exit that is not taken": ("import sys\nif len(sys.argv) > 5:\n    sys.exit(1)\n" + UNCALLED, NOTHING),
    "a weak assertion beside a function that is not called": ("assert f(1)\n" + UNCALLED, "run asserts something"),
    "a test that is called by what is not called": (
        "assert f(1)\ndef test_f(x, y):\n    assert f(x) == y\ndef run():\n    test_f(1, 2)", "run asserts something"),
    "a generator that is a test": (
        WEAK + "def test_f():\n    for x in (1, 2):\n        assert f(x) == x + 1\n        yield", "test_f asserts"),
    "an asynchronous method": (
        WEAK + "class TestF:\n    async def test_f(self):\n        assert f(1) == 2", "TestF.test_f asserts"),
    "an asynchronous method of a case": (
        WEAK_CASE + "class T(unittest.TestCase):\n    async def test_f(self):\n        self.assertEqual(f(1), 2)",
        "T.test_f asserts"),
    "a class derived from the program's": (
        "class G(f):\n    pass\nassert G(1) == 2", "derive a class from one of the program"),
    "a test at exit": (WEAK + "import atexit\n@atexit.register\ndef late():\n    assert f(1) == 2", "late asserts"),
    "a class of another name": (WEAK + "class Check:\n    def test_f(self):\n        assert f(1) == 2", "Check.test_f"),
    "a check of another name": ("assert f(1)\ndef verify(candidate):\n    assert candidate(1) == 2", "verify asserts"),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("program", [RIGHT, WRONG], ids=["right", "wrong"])
def test_tests_that_judge_nothing_are_an_error(
    default_verifier: CodeVerifier,  # noqa: F811
    name: str,
    program: str,
) -> None:
    tests, reason = EMPTY[name]
    verdict = verdict_of(default_verifier, program, tests)
    assert verdict.error is not None
    assert reason in verdict.error


def test_an_error_of_one_row_leaves_the_next_alone(default_verifier: CodeVerifier) -> None:  # noqa: F811
    for _ in range(2):
        assert verdict_of(default_verifier, RIGHT, "def helper():\n    assert f(1)").error is not None
        assert verdict_of(default_verifier, RIGHT, JUDGING["unittest"]).correct


IGNORING = {
    "a function": ("def f(x):\n    return x + 1\nassert f(1) == 2", "f"),
    "an import": ("from math import floor as f\nassert f(2.5) == 2", "f"),
    "a class": ("class Solution:\n    def f(self, x):\n        return 2\nassert Solution().f(1) == 2", "Solution().f"),
    "a solution beside it": ("def g(x):\n    return 2\ndef check(candidate):\n    assert g(1) == 2", "f"),
    "another candidate": ("def check(candidate):\n    candidate = lambda x: 2\n    assert candidate(1) == 2", "f"),
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORING)
def test_tests_that_never_ask_the_program_are_an_error(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    tests, entry_point = IGNORING[name]
    for program in (RIGHT, WRONG):
        method = f"class Solution:\n    f = staticmethod(lambda x: x)\n{program}"
        assert NOTHING in str(verdict_of(default_verifier, method, tests, entry_point=entry_point).error)


# Tests that a wrong program leads past their assertions: (tests, a right program, a wrong one).
DODGED = {
    "a loop over nothing": ("for x in g(3):\n    assert x in (1, 3)", "return [1, 3]", "return []"),
    "a branch": ("r = g(1)\nif r:\n    assert r == 2", "return 2", "return None"),
    "some of several": ("for x in (1, 2, 3):\n    try:\n        assert g(x) == x + 1\n        print('ok')\n"
                        "    except AssertionError:\n        print('FAIL', x)", "return x + 1", "return 2"),
    "some of several, raising": ("for x in (1, 2):\n    try:\n        assert g(x) == x + 1\n    except Exception:\n"
                                 "        print('FAIL', x)", "return x + 1", "return 2 // (x == 1)"),
    "an expected exception": ("try:\n    g(1)\n    assert False, 'none'\nexcept Exception:\n    pass\nassert g",
                              "raise ValueError", "return 1"),
    "a callback": ("def cb(y):\n    assert y == 12345\ndef test_g():\n    g(cb)\n    assert g is not None",
                   "return x(12345)", "\n    for y in 5, 12345:\n        try: x(y)\n        except Exception: pass"),
}  # fmt: skip


@pytest.mark.parametrize("name", DODGED)
def test_a_program_cannot_dodge_the_assertions(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    tests, *bodies = DODGED[name]
    rewards = [marked(verdict_of(default_verifier, f"def g(x): {body}", tests)) for body in bodies]
    assert rewards == [1.0, 0.5]


def test_an_exception_of_the_tests_own_is_not_the_one_expected(default_verifier: CodeVerifier) -> None:  # noqa: F811
    """Caught by the handler is what the tests raise themselves: the program raised nothing."""
    tests = "try:\n    f(1)\n    raise Exception('no exception')\nexcept Exception:\n    pass"
    assert marked(verdict_of(default_verifier, WRONG, tests)) == 0.5
    assert verdict_of(default_verifier, "def f(x):\n    raise KeyError", tests).correct


def held(source: str) -> int:
    """How many assertions held, in this process: the second way to count."""
    counter = assertions.Counter()
    tree = assertions.instrument(ast.parse(source))
    exec(compile(tree, "<tests>", "exec"), counter.hooks())
    return counter.held


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert 1 < 2\nassert [1] == [1]", 2),
        ("for x in range(5):\n    assert x >= 0", 5),
        ("def g():\n    assert 1 < 2\ng()\ng()", 2),
        ("if 1 > 2:\n    assert 1 < 2\nelse:\n    assert 2 > 1", 1),
        ("assert True\nassert (1, 2)\nassert not 0", 0),
        ("x = 1\nif x > 2:\n    raise AssertionError\nelif x > 3:\n    raise AssertionError", 2),
        ("x = 1\nif x < 2:\n    if x > 2:\n        raise AssertionError", 1),
        ("if __name__ == '__main__':\n    if 1 > 2:\n        raise AssertionError", 0),
    ],
)
def test_assertions_are_counted_each_time(source: str, count: int) -> None:
    """By hand."""
    assert held(source) == count
