"""MathVerifier: what counts as an answer, what is equal, and what a second attempt is told."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import MathVerifier, judge
from grpo_lightning.verifiers.math.extract import Format
from grpo_lightning.verifiers.math.numbers import parse_number

GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k"
VERIFIER = MathVerifier()


def verdict(completion: str, gold: object, verifier: MathVerifier = VERIFIER) -> Verdict:
    return judge(verifier, [Sample("", completion, gold)])[0]


def reward(completion: str, gold: object, verifier: MathVerifier = VERIFIER) -> float:
    result = verdict(completion, gold, verifier)
    assert result.error is None, result.error
    assert result.format_valid or not result.correct
    return verifier.reward(result)


HONEST_42 = [
    "#### 42",
    "####42",
    "#### 42\r\n",
    "6 * 7 = <<6*7=42>>42\n#### 42",
    "#### 42 apples",
    "#### $42",
    "#### \\$42",
    "#### $42.00",
    "#### 42€",
    "#### USD 42",
    "#### 42.",
    "#### **42**",
    "**#### 42**",
    "#### 42 dollars per hour",
    "#### $42/hour",
    "#### 42 km/h",
    "#### 42cm²",
    "#### 42 sq. ft.",
    "#### 42%",
    "#### 42\\%",
    "#### 42 percent of the students",
    "#### +42",
    "#### 42.0",
    "#### 042",
    "#### 84/2",
    "#### 4.2e1",
    "#### 4.2 \\times 10^1",
    "#### 4.2 x 10^{1}",
    "#### 42^\\circ",
    "#### 42°",
    "#### 42°C",
    "#### \\boxed{42}",
    "#### x = 42",
    "#### 42\nAll in all, 42 is the total.",
    "#### 42\n#### 42",
    "#### Step 1: think\n#### Step 2: write\n#### 42",
    "\\boxed{42}",
    "\\boxed{ 42 }",
    "$$\\boxed{42\\text{ cm}^2}$$",
    "\\boxed{\\text{42}}",
    "\\boxed{\\$42}",
    "\\boxed{42\\,\\text{km}}",
    "\\boxed{x = 42}",
    "\\boxed{\\text{42 apples}}",
    "\\boxed{\\mathbf{42}}",
    "\\boxed{42}. So the answer is \\boxed{42.0}",
    "\\boxed{42}\n#### 42",
    "The answer is 42.",
    "the answer is: $42$.",
    "The final answer is $42$. I hope it is correct.",
    "**Answer:** 42",
    "The answer is \\(42\\).",
    "The answer is:\n42",
    "Answer:\n42",
    "**Answer:**\n\n**42**",
    "The answer is:\n$$42$$\nas wanted.",
    "The answer is:\n\n42 apples",
    "The answer is **42** apples.",
    "#### **42** apples",
    "#### `42` km",
    "#### 42 men",
    "\\boxed{42\\text{men}}",
    "\\boxed{42~\\text{km}}",
    "#### 42\u00a0km",
    "The answer is not obvious. The answer is 42 apples.",
    "The answer is 41.\n#### 42",
    "<think>#### 41</think>\n#### 42",
    "so maybe \\boxed{41}?</think>\n#### 42",
]


@pytest.mark.parametrize("completion", HONEST_42)
def test_an_honest_answer_scores_1(completion: str) -> None:
    assert reward(completion, "42") == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1,234", "1234"),
        ("1234567", "1,234,567"),
        ("1234567.5", "$1,234,567.50"),
        ("10000", "10{,}000"),
        ("10000", "10,\\!000"),
        ("10\\,000", "10000"),
        ("1234", "1~234"),
        ("1234567", "1\u202f234\u00a0567"),
        ("1234", "1\u2009234"),
        ("-3", "-3"),
        ("-3", "\u22123"),
        ("-3", "- 3"),
        ("-5", "-$5"),
        ("-5", "$-5"),
        ("0", "-0"),
        ("0", "0.00"),
        (".5", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{1}{2}", "\\dfrac{1}{2}"),
        ("\\frac{1}{2}", "\\frac12"),
        ("\\frac12", "\\tfrac{2}{4}"),
        ("1/2", "\\frac1{2}"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("-0.5", "-\\frac12"),
        ("3/2", "1 1/2"),
        ("1.5", "1\\frac{1}{2}"),
        ("-1\\frac12", "-1.5"),
        ("1500", "1.5e3"),
        ("1500", "1.5\\times10^{3}"),
        ("0.0015", "1.5E-3"),
        ("1000000", "10^6"),
        ("50", "50%"),
        ("0.5", "50%"),
        ("50\\%", "50"),
        ("50\\%", "0.5"),
        ("5", "500%"),
        ("50%", "50\\%"),
        ("90^\\circ", "90"),
        ("90", "90^{\\circ}"),
        ("\\$18", "18 dollars"),
        ("x=5", "5"),
        ("12345678901234567890.1", "12,345,678,901,234,567,890.10"),
        ("2:3", "2:3"),
        ("101_2", "101_{2}"),
        ("\\text{east}", "East"),
        ("Evelyn", "\\text{Evelyn}"),
        ("\\text{(C)}", "C"),
        ("(C)", "\\text{C}"),
        ("Yes", "yes"),
    ],
)
def test_equal_answers_score_1(gold: str, answer: str) -> None:
    assert reward(f"\\boxed{{{answer}}}", gold) == 1.0
    assert reward(f"#### {answer}", gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x^2+1", "1 + x^2"),
        ("x^2+1", "x**2+1"),
        ("x^2+2x+1", "(x+1)^2"),
        ("\\frac{\\sqrt{3}}{2}", "sqrt(3)/2"),
        ("\\frac{\\sqrt{3}}{2}", "\\frac{3}{2\\sqrt{3}}"),
        ("2^{10}", "1,024"),
        ("2^{10}", "2^(10)"),
        ("10\\pi", "10π \\text{ cm}^2"),
        ("1.5x", "\\frac{3}{2}x"),
        ("2mn", "2 n m"),
        ("3pq", "3qp"),
        ("\\frac{5}{2}x", "2\\frac{1}{2}x"),
        ("-\\frac{5}{2}x", "-2\\frac12 x"),
        ("x^2\\frac{1}{2}", "\\frac{x^2}{2}"),
        ("3x", "2\\frac{3}{2}x"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("2+3i", "3i + 2"),
        ("\\frac{1-i}{2}", "\\frac{1}{1+i}"),
        ("\\log_2 3", "\\frac{\\ln 3}{\\ln 2}"),
        ("|x|", "\\sqrt{x^2}"),
        ("\\infty", "\\infty"),
        ("\\frac{1}{2004!}", "1/2004!"),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\pi/2 \\right)"),
        ("(1,2]", "(1, 2]"),
        ("(-\\infty,2)\\cup(3,5]", "(3,5] \\cup (-\\infty, 2)"),
        ("x \\in [-2,7]", "[-2, 7]"),
        ("\\{1,2\\}", "\\{2, 1\\}"),
        ("1,2", "2, 1"),
        ("1,2", "\\{2, 1\\}"),
        ("\\{1,2\\}", "2, 1"),
        ("(1,2)", "1, 2"),
        ("1,-1", "\\pm 1"),
        ("\\pm 1", "1, -1"),
        ("1,2", "1 \\text{ and } 2"),
        ("\\pm\\sqrt{2}", "-\\sqrt{2}, \\sqrt{2}"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"),
        ("y=2x+3", "2x + 3"),
        ("y=2x+3", "y = 3 + 2x"),
        ("x^2+y^2=1", "2x^2 + 2y^2 = 2"),
        ("x>3", "3 < x"),
        ("1<x<2", "1 < x < 2"),
        ("\\emptyset", "\\varnothing"),
    ],
)
def test_equal_expressions_score_1(gold: str, answer: str) -> None:
    assert reward(f"So \\boxed{{{answer}}}.", gold) == 1.0


CHEATS_42 = [
    "42",
    "The total is 42.",
    "#### 41 or 42",
    "#### 42 or 41",
    "#### 42 or forty-one",
    "#### 42 and 43",
    "#### 42 43",
    "#### 4 2",
    "#### 42, 43",
    "#### 42/43/44",
    "#### 42 (or 43)",
    "#### 41-43",
    "#### 40..50",
    "#### 41 42 43",
    "#### 41\n#### 42",
    "#### 42\n#### 41",
    "#### 42\n#### I do not know",
    "#### 41 #### 42",
    "#### 42 thousand",
    "#### 42 hundredths",
    "#### 42 squared",
    "#### 42k",
    "#### 42x",
    "#### 42xy",
    "#### 42mn",
    "#### 42AB",
    "#### **4**2",
    "#### **42** or 41",
    "#### **41** **42**",
    "#### 4\u00a02",
    "#### 42\u00a0000",
    "#### 42!",
    "#### 42i",
    "#### 42\\pi",
    "#### -42",
    "#### --42",
    "#### 42.5",
    "#### 4,2",
    "#### 42,000",
    "#### ,42",
    "#### 0x2a",
    "#### 1\n42",
    "#### 40 + 2",
    "#### 6 * 7",
    "#### 40 + 2 = 42",
    "#### 42 = 42",
    "#### 41 = 42",
    "#### 41 1/1",
    "#### 40 4/2",
    "#### 42/0",
    "#### \uff14\uff12",
    "#### \u0664\u0662",
    "#### forty-two",
    "##### 42",
    "### 42",
    "#### N",
    "#### gold",
    "#### answer",
    "\\boxed{41 = 42}",
    "\\boxed{41, 42}",
    "\\boxed{\\{41, 42\\}}",
    "\\boxed{41 \\text{ or } 42}",
    "\\boxed{42 \\pm 1}",
    "\\boxed{x = 41, x = 42}",
    "\\boxed{x = 41 = 42}",
    "\\boxed{x \\in \\{41, 42\\}}",
    "\\boxed{41 < x < 43}",
    "\\boxed{\\sqrt{1764}}",
    "\\boxed{\\sum_{k=1}^{2} 21}",
    "\\boxed{\\gcd(42, 84)}",
    "\\boxed{42}, \\boxed{43}",
    "\\boxed{41}\n#### 42",
    "\\boxed{42}\n#### 41",
    "\\boxed{42",
    "\\boxed{42} \\boxed{",
    "\\boxed{}",
    "\\boxed 42 or 43",
    "The answer is 41 or 42.",
    "The answer is 41. The answer is 42.",
    "The answer is 42.\n" * 200,
    "The answer is 41.\n" * 200 + "#### 41\n" * 80 + "#### 42",
    "The answer is:\n41 or 42",
    "The answer is:\n1. Think.\n42",
    "The answer is:\n42. Or 43.",
    "The answer is:\n41\n42",
    "The answer is:\n42\nNo, the answer is:\n41",
    "The answer is\n",
    "The answer isn't 42.",
    "The answer is not 42",
    "<think>#### 42</think>",
    "<think>#### 42",
    "<think>a</think><think>\\boxed{42}",
    "#### 42\n<think>hm",
    "####<think></think>42",
    "",
    " ",
]


@pytest.mark.parametrize("completion", CHEATS_42)
def test_a_cheat_scores_less_than_1(completion: str) -> None:
    assert reward(completion, "42") < 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
        ("10^{-20}", "0"),
        ("\\frac{\\pi}{10^{20}}", "0.0"),
        ("\\sqrt{2}", "1.41421356"),
        ("\\sqrt{2}", "\\pm\\sqrt{2}"),
        ("\\sqrt{2}", "\\sqrt{2} \\text{ or } \\sqrt{3}"),
        ("\\sqrt{2}", "\\sqrt{3} = \\sqrt{2}"),
        ("\\pm\\sqrt{2}", "\\sqrt{2}"),
        ("3t", "3"),
        ("3t", "3s"),
        *((gold, answer) for gold in ("2mn", "2uv", "2ax", "2AB") for answer in ("2", "2pq", "2 men", "2xy")),
        ("3pq", "3mn"),
        ("6rs", "6"),
        ("x", "2\\frac{1}{2}x"),
        ("x", "2\\frac12x"),
        ("x+1", "3 \\frac{2}{6}x+1"),
        ("x", "X"),
        ("|x|", "x"),
        ("z^2", "|z|^2"),
        ("101_2", "101"),
        ("101_2", "101_3"),
        ("(1,2)", "(2,1)"),
        ("(1,2]", "(1,2)"),
        ("\\{1,2\\}", "\\{1,2,3\\}"),
        ("(1,2)", "\\{1,2\\}"),
        ("\\{1,2\\}", "(1,2)"),
        ("(1,2,3)", "\\{1,2,3\\}"),
        ("1,2", "1,2,2"),
        ("1,2", "\\{1,2,2\\}"),
        ("x,y", "x,x,y"),
        ("x", "x,x"),
        ("1,2", "1"),
        ("y=2x+3", "x=2x+3"),
        ("x^2+y^2=1", "x=x"),
        ("x^2+y^2=-1", "x^2=-5"),
        ("x>3", "x<3"),
        ("x>3", "-x>-3"),
        ("x>3", "x \\ge 3"),
        ("\\infty", "-\\infty"),
        ("\\infty", "1/0"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}"),
        ("x^2+1", "x^2+1 \\text{ or not}"),
        ("10\\pi", "10\\pi \\text{ thousand}"),
        ("\\frac{\\pi^2}{6}", "\\sum_{k=1}^{\\infty} \\frac{1}{k^2}"),
        ("\\text{east}", "east or west"),
        ("\\text{(C)}", "A B C D"),
        ("2:3", "3:2"),
        ("0.5", "50"),
        ("500", "5%"),
        ("5%", "500"),
    ],
)
def test_unequal_answers_score_less_than_1(gold: str, answer: str) -> None:
    assert reward(f"\\boxed{{{answer}}}", gold) < 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("#### 42", 1.0),
        ("#### 41", 0.5),
        ("\\boxed{\\sqrt{2}}", 0.5),
        ("#### 41 or 42", 0.0),
        ("#### hello", 0.0),
        ("hello", 0.0),
    ],
)
def test_wrong_and_unreadable_are_two_things(completion: str, expected: float) -> None:
    assert reward(completion, "42") == expected


@pytest.mark.parametrize("gold", [None, "", "  ", True, ["42"], {}, "nan", "inf", "#### 72", "$$"])
def test_a_bad_gold_answer_is_an_error_and_not_a_wrong_answer(gold: object) -> None:
    result = verdict("\\boxed{x+1}", gold)
    assert result.error is not None
    assert "gold answer" in result.error
    assert not result.correct


@pytest.mark.parametrize("gold", ["x^", "\\foo{x}", "٤٢", "y''=\\Box", "\\text{June 20}"])
def test_a_gold_answer_that_nothing_parses_equals_its_own_text_alone(gold: str) -> None:
    assert reward(f"\\boxed{{{gold}}}", gold) == 1.0
    assert reward(f"#### ${gold}$.", gold) == 1.0
    for other in ("x+1", "42", "x", "foo", "June 21", f"{gold} or x", f"x, {gold}", f"{gold}0"):
        assert reward(f"\\boxed{{{other}}}", gold) < 1.0
    assert reward(f"\\boxed{{{gold}}} \\boxed{{x}}", gold) == 0.0


def test_a_number_may_be_given_as_gold() -> None:
    assert reward("#### 42", 42) == 1.0
    assert reward("#### 0.5", 0.5) == 1.0
    assert reward("#### 1", 1) == 1.0
    assert verdict("#### 1", True).error is not None


@pytest.mark.parametrize(
    ("formats", "completion", "expected"),
    [
        (["hash"], "#### 42", 1.0),
        (["hash"], "\\boxed{42}", 0.0),
        (["hash"], "\\boxed{41}\n#### 42", 1.0),
        (["boxed"], "\\boxed{42}", 1.0),
        (["boxed"], "#### 42", 0.0),
        (["phrase"], "The answer is 42.", 1.0),
        (["hash", "boxed"], "The answer is 42.", 0.0),
        (["bare"], " 42\n", 1.0),
        (["bare"], "It is 42", 0.0),
        (["hash", "bare"], "#### 41", 0.5),
    ],
)
def test_formats_choose_what_counts(formats: list[Format], completion: str, expected: float) -> None:
    assert reward(completion, "42", MathVerifier(formats=formats)) == expected


def test_options_are_checked_and_used() -> None:
    with pytest.raises(ConfigError, match=r"MathVerifier\.formats: must be a list of some of hash, .*, not \['xml'\]"):
        MathVerifier(formats=["xml"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="formats"):
        MathVerifier(formats=[])
    with pytest.raises(ConfigError, match=r"MathVerifier\.symbolic_timeout_s: must be above 0, not 0"):
        MathVerifier(symbolic_timeout_s=0)
    assert reward("#### 42", "42", MathVerifier(reward_correct=2.0)) == 2.0
    assert reward("so\n#### 42", "42", MathVerifier(max_chars=9)) == 0.0
    assert "longer" not in verdict("#### 42", "42", MathVerifier(max_chars=7)).feedback
    assert "'#### <answer>'" in verdict("hm", "42", MathVerifier(formats=["hash"])).feedback


def test_importing_the_verifiers_is_light() -> None:
    heavy = "{'torch', 'transformers', 'sympy', 'math_verify'}"
    code = f"import sys, grpo_lightning.verifiers; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Properties

numbers = st.integers(-(10**12), 10**12) | st.fractions(max_denominator=1000) | st.decimals(-1000, 1000, places=3)
FRAGMENTS = (
    "####|#### |\\boxed{|{|}|42|41| or |,|.|/|-|+|=|^|%|$|\\frac|\n|<think>|</think>|the answer is |x|(|)|\\text{|e9|"
    "\\|\\times 10^|99999999999999999999999999|!|\ud800|\u0663"
)
fragments = st.sampled_from(FRAGMENTS.split("|"))
completions = st.text(max_size=60) | st.lists(fragments, max_size=14).map("".join)


def gold_text(number: object) -> str:
    return f"{number}"


@given(completion=completions, gold=numbers)
@settings(deadline=None, max_examples=400)
def test_a_verdict_comes_for_any_text_and_is_always_the_same(completion: str, gold: object) -> None:
    first = verdict(completion, gold_text(gold))
    assert first.error is None
    assert first.format_valid or not first.correct
    assert first == verdict(completion, gold_text(gold))
    # One answer cannot be right for two golds a unit apart, whatever the text.
    if first.correct and parse_number(gold_text(gold)):
        other = Fraction(gold_text(gold)) + 1
        assert not verdict(completion, gold_text(other)).correct or "%" in completion


@given(completion=completions)
@settings(deadline=None, max_examples=60)
def test_a_verdict_comes_for_any_text_with_a_symbolic_gold(completion: str) -> None:
    result = verdict(completion, "x^2+1")
    assert result.error is None
    assert not result.correct


@given(
    gold=numbers, completion=completions | numbers.map(lambda n: f"#### {n}") | numbers.map(lambda n: f"#### {n} or 1")
)
def test_feedback_never_contains_the_gold(gold: object, completion: str) -> None:
    assert gold_text(gold) not in verdict(completion, gold_text(gold)).feedback


def spellings(value: Fraction) -> list[str]:
    fraction = f"{value.numerator}/{value.denominator}"
    sign, size = ("-" if value < 0 else ""), abs(value)
    found = [
        fraction,
        f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}",
        f"{sign}{size.numerator * 3}/{size.denominator * 3}",
        f"x = {fraction}",
    ]
    if value.denominator == 1:
        found += [
            f"{value}",
            f"{value.numerator:,}",
            f"{sign}${size.numerator:,}",
            f"{value}.000",
            f"{value} apples",
            f"{value}e0",
        ]
        whole, rest = divmod(size.numerator, 7)
        found += [f"{sign}{whole} {rest}/7"] if size.denominator == 7 else []
    return found


@given(value=st.integers(-(10**9), 10**9).map(Fraction) | st.fractions(-1000, 1000, max_denominator=50))
def test_the_spelling_of_a_number_does_not_matter(value: Fraction) -> None:
    texts = spellings(value)
    for text in texts:
        assert reward(f"#### {text}", texts[0]) == 1.0, text
        assert reward(f"\\boxed{{{text}}}", texts[-1]) == 1.0, text


@given(value=numbers.map(lambda n: Fraction(str(n))), other=numbers.map(lambda n: Fraction(str(n))))
def test_a_different_number_never_scores_1(value: Fraction, other: Fraction) -> None:
    for text in spellings(other):
        assert (reward(f"#### {text}", str(value)) == 1.0) == (value == other), text


# Real data


@pytest.mark.skipif(not GSM8K.is_dir(), reason="needs the GSM8K files")
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_solution_scores_1_and_no_other_row_does(split: str) -> None:
    rows = [json.loads(line)["answer"] for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]
    golds = [row.rsplit("####", 1)[1].strip() for row in rows]
    values = [Fraction(gold.replace(",", "")) for gold in golds]
    wrong = [row for row, gold in zip(rows, golds, strict=True) if reward(row, gold) != 1.0]
    assert wrong == []
    assert all(reward(row, gold.replace(",", "")) == 1.0 for row, gold in zip(rows, golds, strict=True))
    shifted = list(zip(rows, values, golds[1:] + golds[:1], values[1:] + values[:1], strict=True))
    assert all(reward(row, other) == 0.5 for row, value, other, other_value in shifted if value != other_value)
