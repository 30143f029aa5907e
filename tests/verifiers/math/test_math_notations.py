"""Notations of public data sets: each gold answer equals itself, in any layout, and no other one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier
from grpo_lightning.verifiers.base import rewarded
from grpo_lightning.verifiers.math.notation import layout
from grpo_lightning.verifiers.math.numbers import parse_number

# Written for this test, one a line, in the notations of MATH-500, OlympiadBench, Gaokao2023-en, CollegeMath and ASDiv.
GOLDS = (Path(__file__).parent / "gold_answers.txt").read_text().splitlines()
VERIFIER = MathVerifier()


def reward(completion: str, gold: str) -> float:
    ((verdict, value),) = rewarded(VERIFIER, [Sample("", completion, gold)])
    assert verdict.error is None, verdict.error
    return value


def layouts(gold: str) -> list[str]:
    """The same answer, typeset in other ways."""
    return [
        f" {gold} ",
        f"{gold}.",
        f"${gold}$" if "$" not in gold else gold,
        re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])", "", gold),
        gold.replace("\\frac", "\\dfrac"),
        gold.replace(", ", ",\\ ").replace("=", " = ").replace("+", " + "),
        gold.replace("^2", "^{2}").replace("\\geq ", "\\ge ").replace("\\leqslant", "\\leq"),
        gold.replace("\\text{", "\\textbf{"),
    ]


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_answer_equals_itself_in_any_layout(gold: str) -> None:
    assert reward(f"So it is \\boxed{{{gold}}}.", gold) == 1.0
    assert [text for text in layouts(gold) if reward(f"\\boxed{{{text}}}", gold) != 1.0] == []


@given(gold=st.sampled_from(GOLDS), other=st.sampled_from(GOLDS))
@settings(deadline=None, max_examples=150)
def test_no_gold_answer_equals_another_one(gold: str, other: str) -> None:
    numbers = parse_number(gold), parse_number(other)
    if layout(gold) != layout(other) and None in numbers:
        assert reward(f"\\boxed{{{other}}}", gold) < 1.0


@given(
    gold=st.sampled_from(GOLDS), other=st.sampled_from(GOLDS), word=st.sampled_from(["or", "and", "\\text{ or }", ";"])
)
@settings(deadline=None, max_examples=100)
def test_two_answers_are_never_one(gold: str, other: str, word: str) -> None:
    if layout(gold) != layout(other):
        assert reward(f"\\boxed{{{gold} {word} {other}}}", gold) < 1.0
        assert reward(f"\\boxed{{{gold}}} or \\boxed{{{other}}}", gold) < 1.0 or parse_number(gold) is not None


@pytest.mark.parametrize(
    ("gold", "equal"),
    [
        ("x^2+1", "(x+i)(x-i)"),
        ("(x+i)(x-i)", "x^2+1"),
        ("x^2+4", "(x+2i)(x-2i)"),
        ("(x-2)(x^2+1)", "(x-2)(x+i)(x-i)"),
        ("x^4-1", "(x-1)(x+1)(x-i)(x+i)"),
        ("x^2-2x+2", "(x-1-i)(x-1+i)"),
        ("a^2+b^2", "(a+bi)(a-bi)"),
        ("(a+ib)(a-ib)", "b^2+a^2"),
        ("y^2+9", "(y-3i)(3i+y)"),
    ],
)
def test_real_and_complex_are_decided_for_the_pair(gold: str, equal: str) -> None:
    assert reward(f"\\boxed{{{equal}}}", gold) == 1.0
    assert reward(f"\\boxed{{{equal}+1}}", gold) < 1.0
    assert reward(f"\\boxed{{{equal}+i}}", gold) < 1.0


bounds = st.integers(-50, 50)


@given(low=bounds, width=st.integers(1, 30), closed=st.tuples(st.booleans(), st.booleans()), other=st.booleans())
@settings(deadline=None, max_examples=40)
def test_an_interval_and_its_inequality_are_one_set(
    low: int, width: int, closed: tuple[bool, bool], other: bool
) -> None:
    high = low + width
    interval = f"{'[' if closed[0] else '('}{low},{high}{']' if closed[1] else ')'}"
    signs = ["\\le" if one else "<" for one in closed]
    if other:
        signs[0] = "<" if closed[0] else "\\le"
    chain = f"{low} {signs[0]} x {signs[1]} {high}"
    assert (reward(f"\\boxed{{{chain}}}", interval) == 1.0) == (not other)
    assert (reward(f"\\boxed{{{interval}}}", chain) == 1.0) == (not other)
    assert (reward(f"\\boxed{{\\{{x \\mid {chain}\\}}}}", interval) == 1.0) == (not other)


@given(roots=st.lists(bounds, min_size=2, max_size=3, unique=True), extra=bounds)
@settings(deadline=None, max_examples=30)
def test_roots_and_their_list_are_one_set(roots: list[int], extra: int) -> None:
    gold = ", ".join(map(str, roots))
    equations = [f"x={root}" for root in reversed(roots)]
    for said in (" \\text{ or } ".join(equations), ", ".join(equations), " or ".join(equations)):
        assert reward(f"\\boxed{{{said}}}", gold) == 1.0
        assert reward(f"\\boxed{{{said}, x={extra}}}", gold) < 1.0
    assert reward(f"\\boxed{{{equations[0]}}}", gold) < 1.0


@given(digits=st.text("0123456789", min_size=1, max_size=5), start=st.text("0123456789", max_size=3))
@settings(deadline=None)
def test_a_repeating_decimal_is_its_fraction(digits: str, start: str) -> None:
    over = int(start + digits) - int(start or 0)
    under = (10 ** len(digits) - 1) * 10 ** len(start)
    for line in ("\\overline", "\\bar"):
        assert reward(f"\\boxed{{0.{start}{line}{{{digits}}}}}", f"{over}/{under}") == 1.0
    assert reward(f"#### 0.{start}({digits})", f"{over}/{under}") == 1.0
    assert reward(f"\\boxed{{0.{start}\\overline{{{digits}}}}}", f"{over + 1}/{under}") < 1.0


@given(base=st.integers(-30, 30), exponent=st.integers(0, 12))
@settings(deadline=None)
def test_one_power_of_literals_is_a_number(base: int, exponent: int) -> None:
    if base == exponent == 0:
        return
    said = f"({base})^{{{exponent}}}"
    assert reward(f"\\boxed{{{said}}}", str(base**exponent)) == 1.0
    assert reward(f"\\boxed{{{said}}}", str(base**exponent + 1)) < 1.0
    assert reward(f"\\boxed{{{said} + 0}}", str(base**exponent)) < 1.0


def pairs() -> dict[str, list[tuple[str, str]]]:
    """By gold answer: answers, and whether they are equal (=) or not (!)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (Path(__file__).parent / "answer_pairs.tsv").read_text().splitlines():
        gold, sign, answer = line.split("\t")
        found.setdefault(gold, []).append((sign, answer))
    return found


PAIRS = pairs()


@pytest.mark.parametrize("gold", PAIRS)
def test_other_writings_and_wrong_neighbours(gold: str) -> None:
    said = {answer: reward(f"so \\boxed{{{answer}}}", gold) == 1.0 for _, answer in PAIRS[gold]}
    assert said == {answer: sign == "=" for sign, answer in PAIRS[gold]}


@pytest.mark.parametrize("name", ["align*", "aligned", "gather", "equation*"])
def test_a_display_environment_around_an_answer_is_layout(name: str) -> None:
    def displayed(text: str) -> str:
        return f"\\begin{{{name}}}{text}\\end{{{name}}}"

    assert reward(f"\\boxed{{{displayed('5')}}}", "5") == 1.0
    assert reward(f"\\boxed{{{displayed('1+x')}}}", "x+1") == 1.0
    assert reward("\\boxed{1+x}", displayed("x+1")) == 1.0
    assert reward(f"\\boxed{{{displayed('2+x')}}}", "x+1") < 1.0


@pytest.mark.parametrize("gold", ["5", "x+1"])
@pytest.mark.parametrize("said", ["#### \\begin", "\\boxed{\\end}", "\\boxed{\\begin{align}}", "#### \\begin{}5"])
def test_an_environment_without_a_name_or_an_end_is_no_answer(said: str, gold: str) -> None:
    assert reward(said, gold) == 0.0
