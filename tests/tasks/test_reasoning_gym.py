"""ReasoningGym: the same rows every time, disjoint splits, mixtures, and mistakes."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is an extra: pip install -e '.[gym]'")

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import SPLITS
from grpo_lightning.tasks.controls import check_rows
from grpo_lightning.tasks.reasoning_gym import GymDataset, ReasoningGym
from grpo_lightning.tasks.reasoning_gym.rows import generate
from grpo_lightning.tasks.shares import apportion
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers import ReasoningGymVerifier
from grpo_lightning.verifiers.reasoning_gym.datasets import build_dataset, source_of
from grpo_lightning.verifiers.reasoning_gym.verifier import COLUMN
from tests.verifiers.code.code_cases import verifier_or_skip

# Two depend on the order of sets or on the libraries' global random numbers; the last has few distinct questions.
NAMES = ["isomorphic_strings", "list_functions", "polynomial_multiplication", "coin_flip"]
ONE_ROW = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def mixture() -> ReasoningGym:
    return ReasoningGym(mixture=[GymDataset(name) for name in NAMES], train_size=16, val_size=8, test_size=8)


@pytest.fixture(scope="module")
def task() -> ReasoningGym:
    return mixture()


def name_of(prompt: Prompt) -> str:
    return str(prompt.metadata[COLUMN]["name"])


def test_rows_are_the_same_every_time(task: ReasoningGym, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PYTHONHASHSEED", "7")
    again = mixture()
    assert [task.prompts(split) for split in SPLITS] == [again.prompts(split) for split in SPLITS]


def rows_of(source: str, seed: int, **sizes: int) -> dict[str, list[dict[str, Any]]]:
    (rows,) = generate([{"source": source, "sizes": sizes}], seed)
    return rows


def test_other_splits_do_not_depend_on_the_size_of_train() -> None:
    source = source_of("coin_flip", None, {})
    few, many = (rows_of(source, 0, test=2, val=2, train=size) for size in (2, 9))
    assert (few["test"], few["val"], few["train"]) == (many["test"], many["val"], many["train"][:2])


def test_no_question_is_in_two_splits(task: ReasoningGym) -> None:
    questions = [prompt.messages[-1]["content"] for split in SPLITS for prompt in task.prompts(split)]
    assert len(set(questions)) == len(questions) == 32


def test_no_question_of_one_data_set_is_in_another_ones_split() -> None:
    digits = {"min_terms": 2, "min_digits": 1, "max_digits": 1}
    parts = [GymDataset("chain_sum", options={**digits, "max_terms": most}) for most in (2, 3)]
    task = ReasoningGym(mixture=parts, train_size=60, val_size=20, test_size=20)
    questions = [prompt.messages[-1]["content"] for split in SPLITS for prompt in task.prompts(split)]
    assert len(set(questions)) == len(questions) == 100
    source = source_of("chain_sum", None, {})
    first, second = generate([{"source": source, "sizes": {"train": 3}}] * 2, 0)
    assert first == rows_of(source, 0, train=3), "the seeds of a data set do not depend on those after it"
    assert {row["question"] for row in first["train"]}.isdisjoint(row["question"] for row in second["train"])


def test_rows_that_a_data_set_fails_to_generate_are_skipped() -> None:
    """Few products of two numbers are in reach, and countdown tries 100 times."""
    options = {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 12, "min_target": 90}
    source = source_of("countdown", None, {**options, "max_target": 99})
    dataset = build_dataset(source, 0, 40)
    with pytest.raises(ValueError, match="Failed to generate"):
        list(map(dataset.__getitem__, range(40)))
    rows = rows_of(source, 0, train=4)
    assert len(rows["train"]) == 4
    assert rows == rows_of(source, 0, train=4)
    none = source_of("countdown", None, {**options, "min_target": 900, "max_target": 999})
    with pytest.raises(ValueError, match=r"name: countdown generates no row .*Failed to generate.*; change them"):
        rows_of(none, 0, train=1)


def test_a_mixture_follows_its_weights() -> None:
    parts = [GymDataset("chain_sum", weight=2), GymDataset("spell_backward")]
    rows = ReasoningGym(mixture=parts, train_size=30, val_size=4, test_size=4).prompts("train")
    # One row each, and the other 28 as 2 to 1.
    assert Counter(map(name_of, rows)) == {"chain_sum": 20, "spell_backward": 10}
    assert len({name_of(row) for row in rows[:10]}) == 2


@pytest.mark.parametrize(
    ("size", "weights", "counts"),
    [(10, [2, 1, 1], [5, 3, 2]), (3, [9, 1, 1], [1, 1, 1]), (5, [1], [5]), (4, [1, 1000], [1, 3])],
)
def test_rows_by_weight(size: int, weights: list[float], counts: list[int]) -> None:
    assert apportion(size, weights) == counts


def test_difficulty_options_and_seed_change_the_rows() -> None:
    def longest(difficulty: int | None = None, seed: int = 0, **options: Any) -> tuple[int, list[str]]:
        rows = rows_of(source_of("chain_sum", difficulty, options), seed, train=10)["train"]
        questions = [row["question"] for row in rows]
        return max(question.count("+") + question.count("-") for question in questions), questions

    assert longest(difficulty=0)[0] < longest(difficulty=2)[0]
    # Options win over the difficulty's.
    assert longest(difficulty=2, min_terms=2, max_terms=2)[0] == 1
    assert set(longest(seed=0)[1]).isdisjoint(longest(seed=1)[1])


def test_the_prompt_says_where_the_answer_belongs(task: ReasoningGym) -> None:
    prompt = task.prompts("train")[0]
    assert prompt.messages[-1]["content"].endswith("inside of these tags.")
    assert task.gold_completion(prompt) == f"<answer>{prompt.answer}</answer>"


def test_examples_are_of_the_rows_own_data_set_and_in_no_split() -> None:
    parts = [GymDataset("chain_sum"), GymDataset("spell_backward"), GymDataset("propositional_logic")]
    task = ReasoningGym(mixture=parts, train_size=9, val_size=3, test_size=3, shots=1)
    first_turns: dict[str, set[str]] = {}
    questions = set()
    for split in SPLITS:
        for prompt in task.prompts(split):
            roles = [message["role"] for message in prompt.messages]
            if name_of(prompt) == "propositional_logic":
                assert roles == ["user"]
                continue
            assert roles == ["user", "assistant", "user"]
            assert prompt.messages[1]["content"].startswith("<answer>")
            first_turns.setdefault(name_of(prompt), set()).add(prompt.messages[0]["content"])
            questions.add(prompt.messages[-1]["content"])
    assert {name: len(texts) for name, texts in first_turns.items()} == {"chain_sum": 1, "spell_backward": 1}
    assert questions.isdisjoint(set.union(*first_turns.values()))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give either name, such as countdown, or a mixture"),
        ({"name": "countdown", "mixture": [GymDataset("chain_sum")]}, "give either name"),
        ({"mixture": []}, "at least one data set"),
        ({"mixture": [GymDataset("chain_sum")], "difficulty": 1}, "for each data set of the mixture"),
        ({"mixture": [GymDataset("chain_sum", weight=0)]}, "the weight of chain_sum must be above 0"),
        ({"name": "chain_sum", "seed": -1}, "seed: -1 must be from 0 to 1000"),
        ({"name": "chain_sum", "val_size": 0}, "val_size: 0 is below 1"),
        ({"name": "chain_sum", "shots": -1}, "shots: -1 must be at least 0"),
        ({"name": "chain_sum", "prompt_template": "Answer!"}, "does not contain {prompt}"),
    ],
)
def test_mistakes_that_need_no_rows(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ReasoningGym(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "count_down"}, "name: reasoning-gym has no data set 'count_down'; it has .*countdown"),
        ({"name": "chain_sum", "options": {"terms": 3}}, "has no option 'terms'; it has .*max_terms"),
        ({"name": "chain_sum", "options": {"min_terms": 9, "max_terms": 2}}, "chain_sum does not take"),
        ({"name": "chain_sum", "difficulty": 99}, "difficulty: 99 is not a level of chain_sum, which has 0 to"),
        ({"name": "needle_haystack", "difficulty": 99}, "difficulty: "),
        ({"name": "chain_sum", "options": ONE_ROW}, "train_size: chain_sum has only about"),
    ],
)
def test_mistakes_that_reasoning_gym_knows(options: dict[str, Any], text: str) -> None:
    source = source_of(options["name"], options.get("difficulty"), options.get("options", {}))
    with pytest.raises(ValueError, match=text):
        rows_of(source, 0, train=500)


def test_a_mistake_found_while_generating_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.task\.init_args\.name: reasoning-gym has no data set 'count_down'"):
        ReasoningGym("count_down").prompts("train")


@pytest.mark.slow
def test_every_data_set_passes_both_controls() -> None:
    from reasoning_gym.factory import DATASETS

    verifier_or_skip("auto").stop()
    names = sorted(set(DATASETS) - {"composite"})
    task = ReasoningGym(
        mixture=[GymDataset(name) for name in names], train_size=len(names), val_size=len(names), test_size=len(names)
    )
    rows = task.prompts("train")
    assert list(check_rows(task, "train", dict(enumerate(rows)), [ReasoningGymVerifier()])) == []
    assert {name_of(row) for row in rows if row.solution is None} == NO_GOLD
