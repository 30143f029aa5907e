"""Where a final answer stands, and what contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier
from grpo_lightning.verifiers.base import rewarded
from grpo_lightning.verifiers.math.symbolic_client import symbolic_worker

VERIFIER = MathVerifier()


def reward(completion: str, gold: str = "5", verifier: MathVerifier = VERIFIER) -> float:
    ((verdict, value),) = rewarded(verifier, [Sample("", completion, gold)])
    assert verdict.error is None, verdict.error
    return value


RIGHT = [
    "**Answer**: 5", "**Answer:** 5", "__Answer__: 5", "*Answer*: 5", "`Answer`: 5", "ANSWER: 5", "Ans: 5",
    "Answer :5", "Answer = 5", "The answer is:\n\n\\[\n5\n\\]", "The answer is\n$$\n5\n$$", "the answer is $$5$$",
    "The answer is \\[5\\]", "The answer is: \\[ 5 \\].",
    "The answer is:\n\n\\[\nx = 5\n\\]\n\nThis is what was asked for.", "Answer: \\(5\\)", "**Final Answer**: 5",
    "**Final answer:** $5$", "### Final Answer\n\n5", "## Answer\n5", "**Answer**\n\n5",
    "**Final Answer**\n\n$$\\boxed{5}$$", "Final Answer: The final answer is $5$. I hope it is correct.",
    "The answer equals 5.", "The final answer should be 5.", "The answer would be 5.", "The correct answer is 5",
    "The answer is: **5**", "The answer is **5**.", "The answer is\n\n**5**", "**The answer is:** 5",
    "The answer is: 5 (coins)", "\\fbox{5}", "\\framebox{5}", "\\boxed 5", "$\\boxed 5$", "$\\boxed 5$ it is",
    "So \\boxed 5.", "\\boxed5", "\\boxed\n{5}", "\\boxed{{5}}", "\\boxed{(5)}", "\\boxed{5.}",
    "\\boxed{\\mathbf{5}}", "\\boxed{\\text{5}}", "\\boxed{x=5}", "\\boxed{\\boxed{5}}", "\\boxed{\\fbox{5}}",
    "\\fbox{\\boxed{5}}", "\\[\\boxed{5}\\]", "\\boxed{5^{1}}", "\\boxed{ {5} }", "<answer>5</answer>",
    "<answer> 5 </answer>", "<answer>\n5\n</answer>", "<ANSWER>5</ANSWER>", "<answer>$5$</answer>",
    "<answer>x = 5</answer>", "<answer>5 apples</answer>", "<answer>\\boxed{5}</answer>", "<answer>#### 5</answer>",
    "<answer>The answer is 5.</answer>", "<think>2+3</think><answer>5</answer>", "\\boxed{5}\n<answer>5</answer>",
    "<think>6?</think>\n\\boxed{5}\n<answer>5.0</answer>", "I use <answer> tags.\n#### 5",
    "I use <answer></answer> tags.\n#### 5", "<answer>5</answer>\nSo it is 5.", "#### 5 (apples)",
    "#### **5** (apples)", "#### Step 1\n#### 2. Add\n#### 5", "The answer is unclear. #### 5",
    "The answer is therefore 5", "The answer is simply 5.", "The answer is clearly 5",
    "The answer will be 5", "The answer to the problem is 5", "Answer\uff1a5", "The answer is:\n```\n5\n```",
    "#### ```5```", "\\boxed\\text{5}", "\\boxed{\\text{Answer: }5}", "#### 5</s>", "#### 5 <|im_end|>",
    "The answer is:\n- 5", "$2 + 3 = \\boxed{5}$", "It is $\\boxed{5}$ or five.", "1. \\boxed{5}", "- \\boxed{5}",
    "\\boxed{5}^\\circ", "\\boxed{5} or $5.0$", "<answer>2 + 3 = \\boxed{5}</answer>",
    "The wrong answer is 6. The answer is 5.", "#### Either way, add.\n#### 5", "The answer is 5.\nOr so I think.",
    "So 2 + 3 = 5\n\\boxed{5}", "D) 7\n\\boxed{5}", "- Option A: incorrect\nAnswer: 5", "\\boxed{5}^{\\text{th}}",
    "\\boxed{5}^{th}", "The answer is 5.\nPossibly 2 ways to see it.", "The answer is 5\nOr 5 apples",
    "<answer>$$2+3$$\n\\boxed{5}</answer>", "<answer>2 + 3 \\boxed{5}</answer>",
]  # fmt: skip
WRONG = [
    "<answer>6</answer>", "<answer>5</answer>\n\\boxed{6}", "\\boxed{5}<answer>6</answer>",
    "#### 5\n<answer>6</answer>", "<answer>5 or 6</answer>", "<answer>5</answer><answer>6</answer>",
    "<answer>5</answer> or <answer>6</answer>", "<answer>5", "#### 5\n<answer>6", "#### 5\n<answer>5",
    "<answer></answer>", "<answer>...</answer>", "</answer>5", "<answer>5<answer>6</answer></answer>",
    "<answer>4<answer>5</answer></answer>", "<answer>2+3</answer>", "<think><answer>5</answer></think>",
    "<answer>The answer is 5. The answer is 6.</answer>", "<answered>5</answered>", "\\boxed{4 \\boxed{5} 6}",
    "\\boxed{4, \\boxed{5}}", "\\boxed{4\\boxed{5}}", "\\boxed{\\boxed{5}6}", "\\boxed{\\boxed{4} \\boxed{5}}",
    "\\fbox{4 \\boxed{5}}", "\\boxed{4 \\fbox{5}}", "\\boxed{\\text{4 or }\\boxed{5}}", "\\boxed{7 \\boxed{5}",
    "\\boxed{5} \\fbox{", "\\boxed{{4} \\boxed{5}}", "\\boxed{4 or 5}\\boxed{5}", "\\boxed{4 or 6} so \\boxed{5}",
    "\\boxed{?} \\boxed{5}", "\\boxed 5 or 6", "\\boxed 56", "\\boxed 5, 6", "\\boxed 5 \\boxed 6",
    "\\fbox{5}\\fbox{6}", "\\fbox{5} \\boxed{6}", "\\boxedx 5", "\\boxed{(5,6)}", "\\boxed{5^{2}}", "\\boxed{{5}{6}}",
    "\\boxed{\\{5\\}, 6}", "\\boxed{-(5)}", "\\boxed{(-5)}", "\\boxed{2+3}", "**Answer**: 6", "**Answer**: 5 or 6",
    "**Answer**: not 5", "Answer: 5\nAnswer: 6", "**Answer**\n\n6", "Answer: 2+3 = 5",
    "The answer is:\n\n\\[\n5\n\\]\nor\n\\[\n6\n\\]", "The answer is:\n\n\\[\n5, 6\n\\]",
    "The answer is:\n\\[5\\]\nThe answer is:\n\\[6\\]", "The answer is:\n5\nor 6", "The answer is\n5\nor maybe\n6",
    "<answer>6 \\boxed{5}</answer>", "#### either 4 or 5\n#### 5", "#### Maybe 4\n#### 5",
    "The answer is either 5 or 6. The answer is 5.", "\\boxed{5} or 6", "\\boxed{5} or $6$", "\\boxed{5}{6}",
    "6\\boxed{5}", "\\frac{1}{\\boxed{5}}", "\\sqrt{\\boxed{5}}", "2^\\boxed{5}", "-\\boxed{5}", "$x = - \\boxed{5}$",
    "\\boxed{5}^2", "\\boxed{5}/6", "\\boxed{5}\\pi", "The answer is 5\nor 6", "The wrong answer is 5.",
    "A common wrong answer is 5. But the right one is 6.", "The answer is:\n- 5\n- 6", "The answer is likely 5",
    "The answer is:\n\\[\n5\n", "The answer is not 5", "The answer is 5 or maybe 6", "#### 4 or 6\n#### 5",
    "#### 4, 6\n#### 5", "my answers: 5", "The answer is 4 or 6. The answer is 5.", "The answer key is 5",
]  # fmt: skip


@pytest.mark.parametrize("completion", RIGHT)
def test_a_right_answer_in_any_place_scores_1(completion: str) -> None:
    assert reward(completion) == 1.0


@pytest.mark.parametrize("completion", WRONG)
def test_a_wrong_or_ambiguous_answer_in_any_place_scores_less(completion: str) -> None:
    assert reward(completion) < 1.0


@pytest.mark.parametrize("completion", RIGHT)
def test_each_place_holds_one_answer_alone(completion: str) -> None:
    assert reward(completion, "6") < 1.0


@pytest.mark.parametrize(
    ("completion", "options", "expected"),
    [
        ("<answer>5</answer>", {"formats": ["hash", "boxed", "phrase"]}, 0.0),
        ("<answer>5</answer>", {"formats": ["tag"]}, 1.0),
        ("\\boxed{5}", {"formats": ["tag"]}, 0.0),
        ("<answer>\\boxed{5}</answer>", {"formats": ["tag"]}, 1.0),
        ("\\boxed{6}<answer>5</answer>", {"formats": ["tag"]}, 1.0),
        ("\\boxed{6}<answer>5</answer>", {"answer_tag": "answer"}, 1.0),
        ("<answer>5</answer>", {"answer_tag": "answer"}, 1.0),
        ("<answer>The answer is 5.</answer>", {"answer_tag": "answer"}, 1.0),
        ("<answer>#### 5</answer>", {"answer_tag": "answer"}, 1.0),
        ("<answer>5 or 6</answer>", {"answer_tag": "answer"}, 0.0),
        ("<solution>x = 5</solution>", {"answer_tag": "solution"}, 1.0),
        ("<solution>5</solution>", {}, 0.0),
        ("#### 5", {"answer_tag": "answer"}, 0.0),
    ],
)
def test_the_tag_is_a_form_and_an_option(completion: str, options: dict[str, Any], expected: float) -> None:
    assert reward(completion, verifier=MathVerifier(**options)) == expected


@pytest.mark.parametrize(
    ("completion", "gold", "extracted", "reason"),
    [
        ("#### 5", "5", "5", "compared as exact numbers: equal"),
        ("#### 6", "5", "6", "compared as exact numbers: different"),
        ("\\boxed{2+3}", "5", "2+3", "an expression where a plain number is asked for"),
        ("\\boxed{1+x}", "x+1", "1+x", "compared symbolically: equal"),
        ("\\boxed{2+x}", "x+1", "2+x", "compared symbolically: different"),
        ("\\boxed{East}", "\\text{east}", "East", "the same text as the gold answer"),
        ("\\boxed{West}", "\\text{east}", "West", "compared as names: different"),
        ("\\boxed{y'=1}", "y'=2", "y'=1", "the gold answer cannot be parsed, and the text is another one"),
        ("\\boxed{41} \\boxed{42}", "42", "42", "two different final answers: 41 and 42"),
        ("#### 41 or 42", "42", "41 or 42", "cannot be read as one answer"),
        ("hm", "42", "", "no final answer in any of the forms hash, boxed, tag, phrase"),
        ("<think>hm", "42", "", "the completion has no part to read an answer in"),
        ("\\boxed{9^{9^{9}}}", "x+3", "9^{9^{9}}", "took more than the CPU time or the memory of one comparison"),
    ],
)
def test_every_verdict_explains_itself(completion: str, gold: str, extracted: str, reason: str) -> None:
    explanation = VERIFIER.verify(Sample("", completion, gold)).explanation
    assert explanation is not None
    assert tuple(part.strip() for part in explanation) == (extracted, gold, reason)


def test_start_warms_the_worker_in_the_background() -> None:
    worker = symbolic_worker(VERIFIER.workers)
    worker.stop()
    MathVerifier().start()
    (pid,) = worker.pids
    assert reward("\\boxed{x+11}", "11+x") == 1.0
    assert worker.pids == [pid]
