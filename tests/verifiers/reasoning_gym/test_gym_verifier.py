"""ReasoningGymVerifier: verdicts, limits, and answers that mean harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is an extra: pip install -e '.[gym]'")

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.reasoning_gym import GymDataset, ReasoningGym
from grpo_lightning.types import FinishReason, Prompt, Sample
from grpo_lightning.verifiers import ReasoningGymVerifier
from grpo_lightning.verifiers.base import judge
from grpo_lightning.verifiers.limited import OutOf
from grpo_lightning.verifiers.reasoning_gym.verifier import COLUMN, _worker
from tests.verifiers.code.code_cases import ISOLATING, verifier_or_skip

NAMES = ["countdown", "chain_sum", "spiral_matrix", "number_sorting"]


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    """Skip where there is no sandbox."""
    verifier_or_skip("auto").stop()


@pytest.fixture(scope="module")
def verifier() -> ReasoningGymVerifier:
    return ReasoningGymVerifier()


@pytest.fixture(scope="module")
def prompts() -> dict[str, Prompt]:
    """A row of each data set."""
    task = ReasoningGym(mixture=[GymDataset(name) for name in NAMES], train_size=4, val_size=4, test_size=4)
    return {prompt.metadata[COLUMN]["name"]: prompt for prompt in task.prompts("train")}


def answered(prompt: Prompt, answer: object) -> Sample:
    return prompt.sample(f"<think>Hm.</think> <answer>{answer}</answer>")


@pytest.mark.parametrize("name", NAMES)
def test_the_gold_answer_is_correct(verifier: ReasoningGymVerifier, prompts: dict[str, Prompt], name: str) -> None:
    prompt = prompts[name]
    verdict = verifier.verify(answered(prompt, prompt.answer))
    assert verdict.correct
    assert verifier.reward(verdict) == 1.0


@pytest.mark.parametrize(
    ("name", "completion", "reward"),
    [
        ("countdown", "<answer>1 + 1</answer>", 0.5),  # readable and wrong
        ("countdown", "<answer>1 +</answer>", 0.5),  # reasoning-gym's scorer reads anything, and gives it 0.01
        ("countdown", "<answer> </answer>", 0.0),  # the scorer would give it 0.01
        ("countdown", "42", 0.0),
        ("countdown", "<answer>1</answer><answer>2</answer>", 0.0),
        ("countdown", "<answer>10**10**10**10</answer>", 0.0),
        ("number_sorting", "<answer>[1, 2</answer>", 0.5),
    ],
)
def test_rewards(
    verifier: ReasoningGymVerifier, prompts: dict[str, Prompt], name: str, completion: str, reward: float
) -> None:
    verdict = verifier.verify(prompts[name].sample(completion))
    assert verdict.error is None
    assert verifier.reward(verdict) == reward
    assert verdict.feedback
    assert str(prompts[name].answer) not in verdict.feedback


def test_the_scorers_value_is_the_reward_with_partial_credit(prompts: dict[str, Prompt]) -> None:
    prompt = prompts["chain_sum"]
    verifier = ReasoningGymVerifier(partial_credit=True)
    verdict = verifier.verify(answered(prompt, f"{prompt.answer} or so"))
    # By reasoning-gym's default scorer: the part of the text that is the gold answer.
    gold = len(str(prompt.answer))
    assert verifier.reward(verdict) == pytest.approx(gold / (gold + len(" or so")))
    assert not verdict.correct


def test_a_truncated_answer_is_not_correct(verifier: ReasoningGymVerifier, prompts: dict[str, Prompt]) -> None:
    prompt = prompts["chain_sum"]
    cut = replace(answered(prompt, prompt.answer), finish_reason=FinishReason.LENGTH)
    (verdict,) = judge(verifier, [cut])
    assert not verdict.correct
    assert verdict.correct_but_truncated


def test_the_tags_can_be_chosen(prompts: dict[str, Prompt]) -> None:
    prompt = prompts["chain_sum"]
    verifier = ReasoningGymVerifier(answer_tag=None, thought_tags=["plan"])
    assert verifier.verify(prompt.sample(f"<plan>7</plan>{prompt.answer}")).correct
    assert not verifier.verify(prompt.sample(f"<think>7</think>{prompt.answer}")).correct
    assert ReasoningGymVerifier(answer_tag="final").verify(prompt.sample(f"<final>{prompt.answer}</final>")).correct


def test_code_in_an_answer_earns_nothing(verifier: ReasoningGymVerifier, prompts: dict[str, Prompt]) -> None:
    verdict = verifier.verify(answered(prompts["spiral_matrix"], "__import__('os').system('true')"))
    assert not verdict.format_valid
    assert "code" in verdict.feedback


@pytest.mark.parametrize("level", ISOLATING)
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {path}')",
        "open('{path}', 'w')",
        "__import__('subprocess').run(['touch', '{path}'])",
        "__import__('os').fork()",
        "open('{secret}').read()",
        "__import__('os').environ['GRPO_TEST_SECRET']",
    ],
)
def test_the_sandbox_holds_even_where_code_runs(
    prompts: dict[str, Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, level: Any
) -> None:
    verifier_or_skip(level).stop()
    monkeypatch.setenv("GRPO_TEST_SECRET", "1")
    (tmp_path / "secret").write_text("1")
    path = tmp_path / "written"
    row = prompts["spiral_matrix"].metadata[COLUMN]
    # Straight to the scorer, which executes it. If the attack worked, the list would have one item, and no error.
    answer = "['it worked' if (" + attack.format(path=path, secret=tmp_path / "secret") + ", 1)[1] else 1]"
    (value,) = _worker(level).call([row["source"], [[row["entry"], answer]]], 5.0)
    assert value in (None, 0.0)
    assert not path.exists()


@pytest.mark.parametrize("level", ISOLATING)
def test_an_answer_that_takes_too_long_ends_and_the_next_one_is_scored(prompts: dict[str, Prompt], level: Any) -> None:
    verifier_or_skip(level).stop()
    row, gold = prompts["spiral_matrix"].metadata[COLUMN], str(prompts["spiral_matrix"].answer)
    worker = _worker(level)
    assert worker.call([row["source"], [[row["entry"], "[9**9**9]"]]], 0.1) is OutOf.TIME
    assert worker.call([row["source"], [[row["entry"], gold]]], 5.0) == [1.0]


def test_each_answer_starts_from_the_same_state(prompts: dict[str, Prompt]) -> None:
    row = prompts["spiral_matrix"].metadata[COLUMN]
    forge = (
        "[setattr(__import__('reasoning_gym').algorithmic.spiral_matrix.SpiralMatrixDataset, 'score_answer', print)]"
    )
    worker = _worker("auto")
    worker.call([row["source"], [[row["entry"], forge]]], 5.0)
    gold = str(prompts["spiral_matrix"].answer)
    assert worker.call([row["source"], [[row["entry"], gold]]], 5.0) == [1.0]


def test_a_batch_is_judged_as_its_answers_are_one_by_one(
    verifier: ReasoningGymVerifier, prompts: dict[str, Prompt]
) -> None:
    answers = ["7", "", "[1, 2", "1 +", "__import__('os')", None]
    samples = [
        answered(prompts[name], prompts[name].answer if one is None else one) for one in answers for name in NAMES
    ]
    assert verifier.verify_batch(samples) == [verifier.verify(sample) for sample in samples]


def test_answers_to_one_data_set_take_one_call_unless_they_are_executed(
    verifier: ReasoningGymVerifier, prompts: dict[str, Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = ReasoningGymVerifier._call
    monkeypatch.setattr(
        ReasoningGymVerifier, "_call", lambda self, *args: calls.append(len(args[1])) or original(self, *args)
    )
    verifier.verify_batch([answered(prompts[name], 7) for name in NAMES for _ in range(3)])
    assert sorted(calls) == [1, 1, 1, 1, 1, 1, 3, 3], "two of the four data sets execute answers"


def test_a_row_that_breaks_the_scorer_is_the_only_error_of_its_batch(
    verifier: ReasoningGymVerifier, prompts: dict[str, Prompt]
) -> None:
    prompt = prompts["chain_sum"]
    metadata = {COLUMN: prompt.metadata[COLUMN] | {"entry": "bm90IGEgcGlja2xl"}}
    samples = [answered(row, prompt.answer) for row in (prompt, replace(prompt, metadata=metadata), prompt)]
    verdicts = verifier.verify_batch(samples)
    assert [verdict.correct for verdict in verdicts] == [True, False, True]
    assert [verdict.error is None for verdict in verdicts] == [True, False, True]


def test_a_row_of_another_task_is_refused(verifier: ReasoningGymVerifier) -> None:
    with pytest.raises(ValueError, match="use the task ReasoningGym"):
        verifier.require(Prompt([{"role": "user", "content": "1 + 1"}], 2))


def test_an_unknown_sandbox_is_refused() -> None:
    with pytest.raises(ConfigError, match="sandbox: must be one of auto, namespaces, landlock, unsafe, not 'jail'"):
        ReasoningGymVerifier(sandbox="jail")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_a_limit_must_be_positive(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match=r"ReasoningGymVerifier\.timeout_s"):
        ReasoningGymVerifier(timeout_s=timeout_s)
