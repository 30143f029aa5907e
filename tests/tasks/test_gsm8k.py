from __future__ import annotations

from pathlib import Path

import pytest
from rows import WriteRows

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import GSM8K, check_controls
from grpo_lightning.tasks.gsm8k import SYSTEM_PROMPT
from grpo_lightning.verifiers import MathVerifier

REAL = Path(__file__).parents[3] / "shared/data/gsm8k"
needs_gsm8k = pytest.mark.skipif(not REAL.is_dir(), reason=f"GSM8K is not in {REAL}")

ROWS = [
    {"question": f"What is {n} thousand and one?", "answer": f"It is <<{n}*1000=1>>{n},000+1.\n#### {n},001"}
    for n in range(1, 11)
]


def folder(write_jsonl: WriteRows) -> Path:
    write_jsonl("test.jsonl", ROWS[:2])
    return write_jsonl("train.jsonl", ROWS).parent


def test_a_row_becomes_a_prompt(write_jsonl: WriteRows) -> None:
    prompt = GSM8K(str(folder(write_jsonl))).prompts("test")[0]
    assert prompt.messages == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "What is 1 thousand and one?"},
    ]
    assert prompt.answer == "1001"
    assert prompt.solution == "It is 1,000+1.\n#### 1001"


def test_the_system_prompt_can_be_omitted(write_jsonl: WriteRows) -> None:
    prompt = GSM8K(str(folder(write_jsonl)), system_prompt=None).prompts("test")[0]
    assert [message["role"] for message in prompt.messages] == ["user"]


def test_validation_is_held_out_from_train(write_jsonl: WriteRows) -> None:
    path = str(folder(write_jsonl))
    answers = {split: {p.answer for p in GSM8K(path, val_size=3).prompts(split)} for split in ("train", "val")}
    assert len(answers["val"]) == 3
    assert len(answers["train"]) == 7
    assert not answers["train"] & answers["val"]
    assert GSM8K(path, val_size=3).prompts("val") == GSM8K(path, val_size=3).prompts("val")
    assert GSM8K(path, val_size=3, seed=1).prompts("val") != GSM8K(path, val_size=3).prompts("val")


def test_limit_cuts_each_split_without_mixing_them(write_jsonl: WriteRows) -> None:
    path = str(folder(write_jsonl))
    for split in ("train", "val"):
        assert GSM8K(path, val_size=3, limit=2).prompts(split) == GSM8K(path, val_size=3).prompts(split)[:2]
    assert len(GSM8K(path, limit=1).prompts("test")) == 1


def test_a_holdout_that_leaves_no_train_row(write_jsonl: WriteRows) -> None:
    with pytest.raises(ConfigError, match=r"init_args\.val_size: 10 leaves none of 10 rows to train on; lower it"):
        GSM8K(str(folder(write_jsonl)), val_size=10).prompts("train")


@pytest.mark.parametrize("answer", ["It is 4.", "It is 4.\n####"])
def test_a_row_without_its_answer_is_named(write_jsonl: WriteRows, answer: str) -> None:
    file = write_jsonl("test.jsonl", [ROWS[0], {"question": "2+2?", "answer": answer}])
    with pytest.raises(ConfigError, match=r"row 2 of .*test\.jsonl has no '#### N' at the end of column 'answer'"):
        GSM8K(str(file.parent)).prompts("test")


def test_a_folder_without_a_test_file(write_jsonl: WriteRows) -> None:
    task = GSM8K(str(write_jsonl("train.jsonl", ROWS).parent), val_size=2)
    assert len(task.prompts("train")) == 8
    with pytest.raises(ConfigError, match=r"init_args\.path: .* has no test split; it has: train"):
        task.prompts("test")


def test_a_folder_with_the_layout_of_the_hub(write_jsonl: WriteRows, tmp_path: Path) -> None:
    write_jsonl("main/test-00000-of-00002.jsonl", ROWS[:2])
    write_jsonl("main/test-00001-of-00002.jsonl", ROWS[2:3])
    write_jsonl("socratic/test-00000-of-00001.jsonl", ROWS[3:4])
    assert [p.answer for p in GSM8K(str(tmp_path)).prompts("test")] == ["1001", "2001", "3001"]
    assert [p.answer for p in GSM8K(str(tmp_path), name="socratic").prompts("test")] == ["4001"]


@needs_gsm8k
def test_the_real_data() -> None:
    task = GSM8K(str(REAL))
    train, val, test = (task.prompts(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (7473 - 200, 200, 1319)
    questions = [{prompt.messages[-1]["content"] for prompt in split} for split in (train, val, test)]
    assert not questions[0] & questions[1]
    assert not questions[0] & questions[2]
    for prompt in (*train, *val, *test):
        assert prompt.solution is not None
        assert "<<" not in prompt.solution
        assert prompt.solution.endswith(f"\n#### {prompt.answer}")
        assert prompt.answer.lstrip("-").isdigit()


@needs_gsm8k
def test_real_gold_answers_pass_the_verifier() -> None:
    assert list(check_controls(GSM8K(str(REAL)), [MathVerifier()])) == []
