"""Wrong answers that scorers of reasoning-gym give 1.0."""

from __future__ import annotations

import base64
import pickle

import pytest

from grpo_lightning.tasks import ReasoningGym
from grpo_lightning.verifiers import ReasoningGymVerifier
from grpo_lightning.verifiers.reasoning_gym.verifier import COLUMN
from tests.verifiers.code.code_cases import verifier_or_skip

reasoning_gym = pytest.importorskip("reasoning_gym")

WRONG = {
    "game_of_life_halting": lambda gold: ["True" if gold == "False" else "False", "Yes", "0", "[]"],
    "coin_flip": lambda gold: ["0", "0.0"],
    "complex_arithmetic": lambda gold: ["nan", "nan + 1i", "inf"],
    "puzzle24": lambda gold: ["8 * 3 * 1 * 1" if sorted(gold) != sorted("8 * 3 * 1 * 1") else "6 * 4 * 1 * 1", "24"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_wrong_and_the_gold_one_is_not(name: str) -> None:
    verifier_or_skip("auto").stop()
    verifier = ReasoningGymVerifier()
    prompts = ReasoningGym(name, train_size=6, val_size=1, test_size=1).prompts("train")
    samples, expected, fooled = [], [], False
    for prompt in prompts:
        gold = str(prompt.answer)
        answers = [gold, *WRONG[name](gold)]
        samples += [prompt.sample(f"<answer>{answer}</answer>") for answer in answers]
        expected += [True] + [False] * (len(answers) - 1)
        dataset, entry = reasoning_gym.create_dataset(name, size=1), _row(prompt.metadata[COLUMN]["entry"])
        fooled |= any(dataset.score_answer(answer, entry) >= 1.0 for answer in answers[1:])
    assert fooled, "the scorer has learned better: remove the second look"
    assert [verdict.correct for verdict in verifier.verify_batch(samples)] == expected


def _row(entry: str) -> dict[str, object]:
    row: dict[str, object] = pickle.loads(base64.b64decode(entry))
    return row
