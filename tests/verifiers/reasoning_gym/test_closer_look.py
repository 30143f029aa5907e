"""Wrong answers that scorers of reasoning-gym give 1.0."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from grpo_lightning.tasks import ReasoningGym
from grpo_lightning.verifiers import ReasoningGymVerifier
from grpo_lightning.verifiers.reasoning_gym.closer_look import is_right
from grpo_lightning.verifiers.reasoning_gym.verifier import COLUMN
from tests.verifiers.code.code_cases import verifier_or_skip

reasoning_gym = pytest.importorskip("reasoning_gym")


def _numbers(row: dict[str, Any]) -> str:
    return " + ".join(map(str, row["metadata"]["numbers"]))


def _unsolved(row: dict[str, Any]) -> list[str]:
    metadata = row["metadata"]
    return [f"Integral({metadata['integrand']}, {metadata['variable']}) + 0"]


WRONG: dict[str, Callable[[str, dict[str, Any]], list[str]]] = {
    "game_of_life_halting": lambda gold, row: ["True" if gold == "False" else "False", "Yes", "0", "[]"],
    "coin_flip": lambda gold, row: ["0", "0.0"],
    "complex_arithmetic": lambda gold, row: ["nan", "nan + 1i", "inf"],
    "puzzle24": lambda gold, row: [
        "8 * 3 * 1 * 1" if sorted(gold) != sorted("8 * 3 * 1 * 1") else "6 * 4 * 1 * 1",
        "24",
        f"24e0 + 0e0 * ({_numbers(row)})",
        f"{gold} + 1e-9",
    ],
    "countdown": lambda gold, row: [
        f"{row['metadata']['target']}e0 + 0e0 * ({_numbers(row)})",
        str(row["metadata"]["target"]),
    ],
    "simple_integration": lambda gold, row: _unsolved(row),
    "intermediate_integration": lambda gold, row: _unsolved(row),
    "gsm_symbolic": lambda gold, row: [f"-{gold}", f"{gold} or 7", f"{gold} / 7"],
    "spell_backward": lambda gold, row: [f"{gold}s"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_wrong_and_the_gold_one_is_not(name: str) -> None:
    verifier_or_skip("auto").stop()
    verifier = ReasoningGymVerifier()
    prompts = ReasoningGym(name, train_size=12, val_size=1, test_size=1).prompts("train")
    samples, expected, fooled = [], [], False
    for prompt in prompts:
        gold = str(prompt.answer)
        dataset, entry = reasoning_gym.create_dataset(name, size=1), _row(prompt.metadata[COLUMN]["entry"])
        answers = [gold, *WRONG[name](gold, entry)]
        samples += [prompt.sample(f"<answer>{answer}</answer>") for answer in answers]
        expected += [True] + [False] * (len(answers) - 1)
        fooled |= any(dataset.score_answer(answer, entry) >= 1.0 for answer in answers[1:])
    assert fooled, "the scorer has learned better: remove the second look"
    assert [verdict.correct for verdict in verifier.verify_batch(samples)] == expected


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(10 - 6) * 5 + 4", True), ("4 + 5*(10 - 6)", True), (" (10-6)*5+4\n", True), ("6 * 4 + 10 - 5", False),
        ("4 * 5 + 10 - 6", True), ("4 * 5 + 10 / 6", False), ("-(-4) * 5 + 10 - 6", True),
        ("10 - 6 + 4 * 5 / 1", False),
        ("24", False), ("4 ** 5 - 10 - 6", False), ("4 * 5 + 10 // 6", False), ("10 if 4 else 5 * 6", False),
    ],
)  # fmt: skip
def test_24_is_made_exactly_of_the_numbers(answer: str, right: bool) -> None:
    row = {"answer": "", "metadata": {"source_dataset": "puzzle24", "numbers": [4, 5, 6, 10]}}
    assert is_right(answer, row) == right


def _row(entry: str) -> dict[str, Any]:
    row: dict[str, Any] = pickle.loads(base64.b64decode(entry))
    return row
