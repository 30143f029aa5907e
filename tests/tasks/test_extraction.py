from __future__ import annotations

import json
import re

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Extraction, check_controls
from grpo_lightning.tasks.extraction import SCHEMA
from grpo_lightning.types import Prompt, Sample
from grpo_lightning.verifiers import JSONSchemaVerifier

SMALL = {"train_size": 300, "val_size": 50, "test_size": 60, "prompt_template": "{prompt}"}


def text(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


def content(prompt: Prompt) -> str:
    return json.dumps(prompt.answer, sort_keys=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gold_object_says_what_the_text_says(seed: int) -> None:
    for prompt in Extraction(seed=seed, **SMALL).prompts("train"):
        assert {thing: int(count) for count, thing in re.findall(r"(\d+) (\w+)", text(prompt))} == prompt.answer[
            "items"
        ]
        # Every capitalised word is a name or a city, except the verb at the beginning.
        capitals = set(re.findall(r"[A-Z]\w+", text(prompt))) - {"Send"}
        assert capitals == {prompt.answer["name"], prompt.answer["city"]} - {None}


def test_the_solution_is_the_gold_as_compact_json() -> None:
    for prompt in Extraction(**SMALL).prompts("train"):
        assert prompt.solution is not None
        assert json.loads(prompt.solution) == prompt.answer
        assert " " not in prompt.solution
        assert prompt.metadata["schema"] == SCHEMA


def test_the_city_may_be_missing() -> None:
    cities = {prompt.answer["city"] for prompt in Extraction(**SMALL).prompts("train")}
    assert None in cities
    assert len(cities) == 9


def test_splits_share_no_order_whatever_the_seeds() -> None:
    orders = {
        split: {content(prompt) for seed in range(3) for prompt in Extraction(seed=seed).prompts(split)}
        for split in ("train", "val", "test")
    }
    assert not orders["train"] & orders["val"]
    assert not orders["train"] & orders["test"]
    assert not orders["val"] & orders["test"]


def test_orders_are_distinct_and_sizes_are_honoured() -> None:
    task = Extraction(train_size=2000, val_size=5, test_size=3, max_items=2, max_count=9)
    assert len({content(prompt) for prompt in task.prompts("train")}) == 2000
    assert [len(task.prompts(split)) for split in ("val", "test")] == [5, 3]


def test_a_seed_repeats_and_two_seeds_differ() -> None:
    assert Extraction(seed=3, **SMALL).prompts("train") == Extraction(seed=3, **SMALL).prompts("train")
    assert Extraction(seed=3, **SMALL).prompts("train") != Extraction(seed=4, **SMALL).prompts("train")


def test_difficulty_options_hold() -> None:
    task = Extraction(**SMALL, min_items=4, max_items=6, max_count=300)
    items = [prompt.answer["items"] for prompt in task.prompts("train")]
    assert {len(order) for order in items} == {4, 5, 6}
    counts = {count for order in items for count in order.values()}
    assert min(counts) >= 2
    assert 290 < max(counts) <= 300


def test_the_schema_can_be_shown() -> None:
    prompt = Extraction(**SMALL, show_schema=True, system_prompt="Be exact.").prompts("val")[0]
    assert prompt.messages[0] == {"role": "system", "content": "Be exact."}
    assert json.loads(text(prompt).split("\n")[-1]) == SCHEMA
    assert "additionalProperties" not in text(Extraction(**SMALL).prompts("val")[0])


def test_gold_answers_pass_the_verifier() -> None:
    assert list(check_controls(Extraction(**SMALL), [JSONSchemaVerifier()])) == []


def test_any_change_of_the_gold_is_wrong() -> None:
    verifier = JSONSchemaVerifier()
    for prompt in Extraction(**SMALL).prompts("val"):
        thing, count = next(iter(prompt.answer["items"].items()))
        changes = [{"city": "Nowhere"}, {"name": ""}, {"items": {**prompt.answer["items"], thing: count + 1}}]
        for change in changes:
            completion = json.dumps({**prompt.answer, **change})
            verdict = verifier.verify(Sample(prompt.messages, completion, prompt.answer, prompt.metadata))
            assert not verdict.correct
            assert verdict.format_valid


def test_more_orders_than_exist() -> None:
    task = Extraction(val_size=1000, max_items=1, max_count=3)
    with pytest.raises(ConfigError, match=r"init_args\.val_size: 1000 is too many.*or raise max_items or max_count"):
        task.prompts("val")


@pytest.mark.parametrize(
    ("option", "value"),
    [("train_size", 0), ("val_size", 0), ("test_size", -1), ("min_items", 0), ("max_items", 0), ("max_items", 13),
     ("max_count", 1)],
)  # fmt: skip
def test_an_impossible_option_is_named(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.{option}: {value} must be at (least|most)"):
        Extraction(**{option: value})
