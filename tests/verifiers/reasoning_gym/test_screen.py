"""What counts as code in an answer that a scorer of reasoning-gym executes."""

from __future__ import annotations

import pytest

from grpo_lightning.verifiers.reasoning_gym.screen import is_code

LISTS = ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"]
EXPRESSIONS = [
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
]
ATTACKS = [
    "__import__('os').system('true')",
    "print(1)",
    "print (1)",
    "(print)(1)",
    "[print][0](1)",
    "[f(1) for f in [print]]",
    "print\\\n(1)",
    "(print # why not\n(1))",
    "().__class__",
    "[].append(1)",
    "x.y",
    "1.5.hex()",
    'f"{print(1)}"',
    "(lambda: 1)()",
    "ｐｒｉｎｔ(1)",  # noqa: RUF001 - Python reads it as print
    "exec('1')",
    "{}[0](1)",
    "'a'('b')",
]
ATTACKS_ON_SYMPY = [
    "sin('print(1)')",
    "S('print(1)')",
    'sqrt("print(1)")',
    "sympify(x)",
    "lambdify(x, x)",
    "Lambda(x, x)(1)",
    "'print(1)'",
]


@pytest.mark.parametrize("dataset", [*LISTS, *EXPRESSIONS])
@pytest.mark.parametrize("answer", ATTACKS)
def test_code_is_recognized(dataset: str, answer: str) -> None:
    assert is_code(dataset, answer)


@pytest.mark.parametrize("dataset", EXPRESSIONS)
@pytest.mark.parametrize("answer", ATTACKS_ON_SYMPY)
def test_texts_that_sympy_executes_are_recognized(dataset: str, answer: str) -> None:
    assert is_code(dataset, answer)


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("spiral_matrix", "[[1, 2], [3, 4]]"),
        ("spiral_matrix", "1 2 3"),
        ("string_insertion", "['A', 'B']"),
        ("string_insertion", "ABCDE"),
        ("n_queens", "_ Q _ _\n_ _ _ Q"),
        ("binary_matrix", "0 1\n1 0"),
        ("countdown", "-50 + (84*(26 + 2) + 83)/5"),
        ("puzzle24", "8*(5*1 - 2)"),
        ("polynomial_multiplication", "-1560*x**3 - 3822.5*x**2"),
        ("simple_integration", "7*X**9 - 2*X**6 + C"),
        ("intermediate_integration", "3*Integral(x**3*cos(3*x), x) + exp(2*x)*sqrt(x)/3 + C"),
        ("chain_sum", "__import__('os')"),  # compared as text, never executed
    ],
)
def test_values_and_mathematics_pass(dataset: str, answer: str) -> None:
    assert not is_code(dataset, answer)
