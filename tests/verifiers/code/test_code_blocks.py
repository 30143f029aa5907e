"""Which blocks of a completion are the program: by what they define, and never by how they fare in the tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from code_cases import default_verifier, marked  # noqa: F401  (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, judge
from grpo_lightning.verifiers.code.fences import other_blocks, program_blocks
from grpo_lightning.verifiers.code.sandbox.blocks import choose

EXTRACTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "bare": ("x = 1", ("x = 1",)),
    "fenced": ("Sure:\n```python\nx = 1\n```\nDone.", ("\nx = 1\n",)),
    "without a language": ("```\nx = 1\n```", ("\nx = 1\n",)),
    "python before others": ("```\n$ ls\n```\n```py\nx = 1\n```\n```bash\nls\n```", ("\n$ ls\n", "\nx = 1\n")),
    "carriage returns": ("```python\r\nx = 1\r\n```\r\n", ("\nx = 1\n",)),
    "carriage returns alone": ("```python\rx = 1\r```\r", ("\nx = 1\n",)),
    "words behind the language": ("~~~ python title=a\nx = 1\n~~~~\nDone.", ("\nx = 1\n",)),
    "a fence of the other kind inside": ("```python\nx = 1\n~~~\n```", ("\nx = 1\n~~~\n",)),
    "code between backticks": ("```x``` is\n```python\nx = 1\n```", ("\nx = 1\n",)),
    "several blocks": ("```python\nx = 1\n```\nand\n```Python3\ny = 2\n```", ("\nx = 1\n", "\ny = 2\n")),
    "only another language": ("```java\nint x;\n```", ()),
    "Python before the block without a language, which it replaces": (
        "```python\nx = 1\n```\n```\ny = 2\n```\n```java\nint x;\n```",
        ("\ny = 2\n", "\nx = 1\n"),
    ),
    "a closing fence with words": ("```python\nx = 1\n``` This works.", ("\nx = 1\n",)),
    "a closing fence with a tag": ("<answer>```python\nx = 1\n```</answer>", ("\nx = 1\n",)),
    "a closing fence behind code": ("```python\nx = 1```\nDone.", ("\nx = 1\n",)),
    "words before the fence": ("Solution: ```python\nx = 1\n```", ("\nx = 1\n",)),
    "a list item": ("- ```python\n  x = 1\n  ```\n1. ```py\n   y = 2\n   ```", ("\nx = 1\n", "\ny = 2\n")),
    "a quotation": ("> Look:\n> ```python\n> if x:\n>     y = 1\n> ```\nSo.", ("\nif x:\n    y = 1\n",)),
    "a closing fence that was forgotten": ("```python\nx = 1\n```python\ny = 2\n```", ("\nx = 1\n", "\ny = 2\n")),
    "markdown around it": ("```markdown\n# Title\n```python\nx = 1\n```\n```", ("\nx = 1\n",)),
    "a fence in a docstring": (
        '```python\ns = """\n```\nx\n```\n"""\nx = 1\n```\nDone.',
        ('\ns = """\n```\nx\n```\n"""\nx = 1\n',),
    ),
    "quotes that are no docstring": ('```python\nx = 1  # no """\n```\nDone.', ('\nx = 1  # no """\n',)),
    "tags without a fence": ("<answer>\nx = 1\n</answer>", ("\nx = 1\n",)),
    "what cannot be seen": ("\ufeff```python\u200b\nif x:\n\u00a0\u00a0y = 1\n```", ("\nif x:\n  y = 1\n",)),
    "an open block": ("```python\nx = 1", ("\nx = 1",)),
    "longer fences": ("````python\ns = '''\n```\n'''\n````", ("\ns = '''\n```\n'''\n",)),
    "nothing": (" \n ", ()),
    "an empty block": ("```python\n```", ()),
}


@pytest.mark.parametrize("name", EXTRACTED)
def test_the_blocks_of_a_completion(name: str) -> None:
    completion, blocks = EXTRACTED[name]
    assert program_blocks(completion) == blocks


def test_any_language_is_read_where_there_is_nothing_else() -> None:
    assert other_blocks("```text\nx = 1\n```\n```java\n```") == ("\nx = 1\n",)
    assert other_blocks("x = 1") == ()


@pytest.mark.parametrize(
    "info",
    ["{python}", "python:solution.py", "python3.10", "py3", "{.python}", "python,runnable", "python=", "ipython",
     "{code-cell} ipython3", "solution.py", "pypy3", "cpython", "python2", "jupyter", "Python 3",
     'python title="a.py"'],
)  # fmt: skip
def test_the_ways_to_say_python(info: str) -> None:
    assert program_blocks(f"```sh\nls\n```\n```{info}\nx = 1\n```\nDone.") == ("\nx = 1\n",)


@pytest.mark.parametrize(
    "line", ["~" * 200_000 + "`", "```" + "x" * 200_000 + "`", "```" + " \t" * 100_000 + "`", " " * 200_000 + "```x`"]
)
def test_a_line_that_is_nearly_a_fence_is_read_in_linear_time(line: str) -> None:
    """A pattern that tries every way to split such a line would take hours."""
    assert program_blocks(line) == (line,)
    assert program_blocks(f"{line}\n```python\nx = 1\n```\n{line}") == ("\nx = 1\n",)


F = "def f(x):\n    return x + 1"
OTHER_F = "def f(x):\n    return x + 2"
STUB = 'def f(x):\n    """Add one."""'
SCRIPT = "def solve(n):\n    return 2 * n\nprint(solve(int(input())))"

# name: (blocks, the numbers of those that are the program of a function f)
FUNCTIONS: dict[str, tuple[list[str], list[int]]] = {
    "a doctest session": ([F, ">>> f(1)\n2"], [0]),
    "a doctest session before it": ([">>> f(1)\n2", F], [1]),
    "a demonstration": ([F, "print(f(3))  # 4"], [0]),
    "a demonstration with a loop": ([F, "for i in range(3):\n    print(i, f(i))"], [0]),
    "a demonstration that asks": ([F, "n = int(input())"], [0]),
    "a demonstration that asks and calls": ([F, "n = int(input())\nprint(f(n))"], [0]),
    "a main function": ([F, "def main():\n    print(f(int(input())))\nif __name__ == '__main__':\n    main()"], [0]),
    "tests": ([F, "def test_f():\n    assert f(1) == 2\ntest_f()"], [0]),
    "output": ([F, "The result is 4"], [0]),
    "output that is Python": ([F, "4"], [0]),
    "a broken second block": ([F, "def f(x:"], [0]),
    "a broken first block": (["def f(x:", F], [1]),
    "only a head first": (["def f(x):", F], [1]),
    "a stub first": ([STUB, F], [1]),
    "a stub with pass first": (["def f(x):\n    pass", F], [1]),
    "a stub that raises first": (["def f(x):\n    raise NotImplementedError", F], [1]),
    "a stub last": ([F, STUB], [0]),
    "two solutions": ([F, OTHER_F], [1]),
    "two solutions and a demonstration": ([OTHER_F, F, "print(f(1))"], [1]),
    "a first solution that asks": (["n = int(input())\ndef f(x):\n    return n", F], [1]),
    "imports first": (["import math\nfrom typing import List", "def f(x: List):\n    return math.pi"], [0, 1]),
    "settings first": (["import sys\nsys.setrecursionlimit(9999)", F], [0, 1]),
    "a star import first": (["from typing import *", "def f(x: List[int]):\n    return x"], [0, 1]),
    "a constant first": (["MOD = 10**9 + 7", "def f(x):\n    return x % MOD"], [0, 1]),
    "a constant last": (["def f(x):\n    return TABLE[x]", "TABLE = [1, 2]"], [0, 1]),
    "a helper first": (["def g(x):\n    return x + 1", "def f(x):\n    return g(x)", "print(f(1))"], [0, 1]),
    "a helper last": (["def f(x):\n    return g(x)", "def g(x):\n    return x + 1"], [0, 1]),
    "a better helper": (["def g(x):\n    return x\ndef f(x):\n    return g(x)", "def g(x):\n    return x + 1"], [0, 1]),
    "a helper of the other solution": (["def g(x):\n    return x\ndef f(x):\n    return g(x)", F], [1]),
    "helpers of helpers": (["A = 1", "def h():\n    return A", "B = 2", "def f(x):\n    return h() + x"], [0, 1, 3]),
    "a lambda": (["f = lambda x: x + 1", "f(2)"], [0]),
    "a decorator first": (["import functools", "@functools.cache\ndef f(x):\n    return x"], [0, 1]),
    "a base class first": (["class B:\n    y = 1", "class Solution(B):\n    def f(s, x):\n        return x"], [0, 1]),
    "a class and its use": (["class Solution:\n    def f(self, x):\n        return x", "print(Solution().f(1))"], [0]),
    "a method shown alone": ([F, "def f(self, x):\n    return x"], [0]),
    "a stub with a mark last": ([F, "def f(x):\n    return ..."], [0]),
    "none compiles": (["def f(x:", "def f(y:"], [0, 1]),
    "none defines it": (["x = 1", "y = 2"], [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_program_of_a_function_row(name: str) -> None:
    blocks, chosen = FUNCTIONS[name]
    assert choose(blocks, {"f"}, is_script=False) == chosen


SCRIPTS: dict[str, tuple[list[str], list[int]]] = {
    "a demonstration": ([SCRIPT, "print(solve(3))  # 6"], [0]),
    "a demonstration that asks": ([SCRIPT, "n = int(input())\nprint(solve(n))"], [0]),
    "a line of input explained": ([SCRIPT, "n = int(input())"], [0]),
    "output": ([SCRIPT, "6"], [0]),
    "a doctest session": ([SCRIPT, ">>> solve(3)\n6"], [0]),
    "a function, then the script": (["def solve(n):\n    return 2 * n", "print(solve(int(input())))"], [0, 1]),
    "a main function, then its call": (["M = int(7)\ndef main():\n    print(int(input()))", "main()"], [0, 1]),
    "imports, then the script": (["import sys", "print(sys.stdin.read())"], [0, 1]),
    "two scripts": ([SCRIPT, "print(int(input()) * 2)"], [1]),
    "two scripts and a demonstration": (["print(3)", SCRIPT, "print(solve(3))"], [1]),
    "a draft that does not compile": (["print(int(input()) *", SCRIPT], [1]),
    "no input": (["print('hello')", "hello"], [0]),
    "no input, a function, then its call": (["def s():\n    return 42", "print(s())"], [0, 1]),
    "no input, then a demonstration": (["def s():\n    return 42\nprint(s())", "print(s() + 1)"], [0]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_program_of_a_script_row(name: str) -> None:
    blocks, chosen = SCRIPTS[name]
    assert choose(blocks, (), is_script=True) == chosen


def fences(blocks: Sequence[str]) -> str:
    return "\n".join(f"Look:\n```python\n{block}\n```" for block in blocks)


def reward(verifier: CodeVerifier, blocks: Sequence[str], **metadata: object) -> float | str:
    return marked(judge(verifier, [Sample("", fences(blocks), metadata=metadata)])[0])


def test_a_policy_cannot_hedge_with_two_solutions(default_verifier: CodeVerifier) -> None:  # noqa: F811
    """One of them is run, whichever the tests would like."""
    for value in (2, 3):
        rewards = [reward(default_verifier, blocks, tests=f"assert f(1) == {value}")
                   for blocks in ([F, OTHER_F], [OTHER_F, F])]  # fmt: skip
        assert rewards == ([0.5, 1.0] if value == 2 else [1.0, 0.5])


def test_blocks_that_only_show_do_not_void_the_answer(default_verifier: CodeVerifier) -> None:  # noqa: F811
    pairs = [{"stdin": "5", "stdout": "10"}]
    assert reward(default_verifier, [SCRIPT, "print(solve(3))  # 6"], io=pairs) == 1.0
    assert reward(default_verifier, [SCRIPT.replace("2", "3"), "print(solve(3))  # 6"], io=pairs) == 0.5
    for extra in (">>> f(1)\n2", "n = int(input())", "print(f(1))", "def f(x):", STUB):
        assert reward(default_verifier, [F, extra], tests="assert f(1) == 2") == 1.0, extra
        assert reward(default_verifier, [OTHER_F, extra], tests="assert f(1) == 2") == 0.5, extra
    both = "def f(x):\n    return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))"
    assert (
        reward(default_verifier, [both, "print(f(1))"], tests="assert f(1) == 2", io=[{"stdin": "4", "stdout": "5"}])
        == 1.0
    )


PYTHON, UNTAGGED = "```python\n{}\n```\n", "```\n{}\n```\n"
# Completions that are right where F is, and wrong with the other one.
AS_MODELS_WRITE = {
    "untagged, then a demonstration": UNTAGGED + PYTHON.format("print(f(1))"),
    "a stub, then untagged": PYTHON.format("def f(x):\n    ...") + UNTAGGED,
    "tagged, after another that is untagged": UNTAGGED.format("def f(x):\n    return x") + PYTHON,
    "tagged, before another that is untagged": PYTHON + UNTAGGED.format("def f(x):\n    return x"),
    "a later import of the future": PYTHON.format("import sys")
    + PYTHON.format("from __future__ import annotations\n{}"),
    "a demonstration that reads": PYTHON.format("{}\nn = int(input())\nprint(f(n))"),
    "an exit": PYTHON.format("import sys\n{}\nsys.exit(0)"),
    "text": "```text\n{}\n```",
}


@pytest.mark.parametrize("name", AS_MODELS_WRITE)
def test_a_program_is_found_as_models_write_it(default_verifier: CodeVerifier, name: str) -> None:  # noqa: F811
    completions = [AS_MODELS_WRITE[name].format(program) for program in (F, OTHER_F)]
    samples = [Sample("", completion, metadata={"tests": "assert f(1) == 2"}) for completion in completions]
    assert [marked(verdict) for verdict in judge(default_verifier, samples)] == [1.0, 0.5]


def test_an_end_before_the_tested_function_is_no_program(default_verifier: CodeVerifier) -> None:  # noqa: F811
    for line in ("n = int(input())", "raise SystemExit"):
        assert reward(default_verifier, [f"{line}\n{F}"], tests="assert f(1) == 2") == 0.0


def test_a_script_may_leave_by_os_exit(default_verifier: CodeVerifier) -> None:  # noqa: F811
    script = "import os, sys\nprint(int(input()) * 2)\nsys.stdout.flush()\nos._exit(0)"
    pairs = [{"stdin": str(n), "stdout": str(2 * n)} for n in (5, 6)]
    assert reward(default_verifier, [script], io=pairs) == 1.0
    assert reward(default_verifier, [script.replace("2", "3")], io=pairs) == 0.5
    assert reward(default_verifier, ["```java\nint x;"], io=pairs) == 0.0


PIECES = [
    F,
    OTHER_F,
    STUB,
    SCRIPT,
    "print(f(1))",
    ">>> f(1)",
    "n = int(input())",
    "import math",
    "x = (",
    "4",
    "\0",
    "# nothing",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=10), min_size=1, max_size=6), st.booleans())
def test_the_choice_is_some_of_the_blocks_in_their_order(blocks: list[str], is_script: bool) -> None:
    chosen = choose(blocks, {"f"}, is_script)
    assert chosen
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(blocks)))
    # A block that does not compile, or that shows a session, changes nothing but the numbers.
    if any(block in (F, OTHER_F) for block in blocks):
        moved = choose([">>> f(1)", *blocks], {"f"}, is_script)
        assert [number - 1 for number in moved] == chosen
