"""Tabular over what a program has in hand: lists of dicts, data sets, streams. And what a row knows of its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import GSM8K, Arithmetic, Extraction, Programs, Tabular
from grpo_lightning.tasks.columns import with_columns
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers import FunctionVerifier

ROWS = [{"prompt": f"{n}+1", "answer": str(n + 1), "level": n} for n in range(6)]


def plain(prompts: Any) -> list[tuple[Any, ...]]:
    return [
        (prompt.messages, prompt.answer, prompt.solution, prompt.is_text, dict(prompt.columns)) for prompt in prompts
    ]


def stream(rows: Any = ROWS) -> Any:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def endless() -> Iterator[dict[str, Any]]:
    while True:
        yield from ROWS


DATASET = datasets.Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    "given",
    [ROWS, tuple(ROWS), DATASET, {"train": ROWS}, datasets.DatasetDict(train=DATASET)],
    ids=["list", "tuple", "Dataset", "dict", "DatasetDict"],
)
def test_rows_in_hand_are_those_of_a_file(given: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for split in ("train", "val"):
        there, here = Tabular(str(file), val_size=2).prompts(split), Tabular(given, val_size=2).prompts(split)  # type: ignore[arg-type]
        assert plain(here) == plain(there)
        assert len(here) == {"train": 4, "val": 2}[split]


def test_splits_by_their_names() -> None:
    task = Tabular({"train": ROWS[:3], "validation": ROWS[3:4], "test": datasets.Dataset.from_list(ROWS[4:])})
    assert [len(task.prompts(split)) for split in ("train", "val", "test")] == [3, 1, 2]
    with pytest.raises(ConfigError, match=r"init_args.path: the data given has no test split; it has: train; add"):
        Tabular(ROWS).prompts("test")
    assert len(Tabular({"mine": ROWS}, splits={"test": "mine"}).prompts("test")) == 6


@pytest.mark.parametrize("given", [stream(), iter(ROWS), endless()], ids=["IterableDataset", "iterator", "endless"])
def test_of_a_stream_the_first_rows_are_read(given: Any) -> None:
    task = Tabular(given, limit=3, val_size=2)
    train, val = task.prompts("train"), task.prompts("val")
    assert (len(train), len(val)) == (3, 2)
    assert sorted(int(prompt.answer) for prompt in (*train, *val)) == [1, 2, 3, 4, 5]


def test_a_filter_of_a_stream_that_no_row_can_match_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"init_args\.filters: the data set has no column 'levle'; it has: prompt,"):
        Tabular(stream(), limit=3, val_size=2, filters={"levle": 3}).prompts("train")


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_a_data_set_that_gives_tensors_gives_values(format: str) -> None:
    rows = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}], "answer": n} for n in range(3)])
    for given in (rows.with_format(format), rows.to_iterable_dataset().with_format(format)):
        prompts = Tabular({"train": given, "val": given}, limit=3).prompts("train")
        # A tensor equals its number, and reads otherwise.
        assert [str(prompt.answer) for prompt in prompts] == ["0", "1", "2"]
        assert [prompt.solution for prompt in prompts] == ["#### 0", "#### 1", "#### 2"]
        assert prompts[0].messages == [{"role": "user", "content": "x"}]
    shouted = datasets.Dataset.from_list(ROWS).with_transform(lambda batch: {**batch, "answer": ["!"] * 1})
    assert {prompt.answer for prompt in Tabular({"test": shouted}).prompts("test")} == {"!"}


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    DATASET.with_format("torch").save_to_disk(tmp_path / "rows")
    datasets.DatasetDict(train=DATASET, test=DATASET.select([4])).save_to_disk(tmp_path / "splits")
    assert plain(Tabular(str(tmp_path / "rows"), val_size=2).prompts("train")) == plain(
        Tabular(ROWS, val_size=2).prompts("train")
    )
    (prompt,) = Tabular(str(tmp_path / "splits")).prompts("test")
    assert prompt.answer == "5"
    (tmp_path / "rows/state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"init_args\.path: cannot read .*rows: .*; repair or replace"):
        Tabular(str(tmp_path / "rows"), val_size=2).prompts("train")


def test_a_stream_without_a_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"init_args\.limit: the length of a stream is unknown; set how many"):
        Tabular(stream()).prompts("train")
    assert len(Tabular(list(stream()), val_size=1).prompts("train")) == 5


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "the given train split has no rows; add rows or give another path"),
        (datasets.Dataset.from_list([]), "the given train split has no rows"),
        (
            [ROWS[0], "row"],
            "row 2 of the given train split is of type str, not a dict of columns; give a list of dicts",
        ),
        (pandas.DataFrame(ROWS), "of a pandas DataFrame: to_dict('records')"),
        (pyarrow.Table.from_pylist(ROWS), "the given train split is of type Table; give a list of dicts, or a Dataset"),
        ({"train": "rows.jsonl"}, "the given train split is of type str; give a list of dicts, or a Dataset"),
        ({"prompt": ["1+1"], "train": ["1+1"]}, "row 1 of the given train split is of type str"),
        (5, "the given train split is of type int; give a list of dicts, or a Dataset"),
        (None, "the given train split is of type NoneType"),
    ],
)
def test_anything_else_is_one_sentence(given: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tabular(given, val_size=1).prompts("train")
    assert str(caught.value).startswith("data.task.init_args.path: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_with_prompts_alone(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Write.", "label": "x"}] * 2
    (prompt,) = Tabular(rows, val_size=1).prompts("train")
    assert prompt.answer is None
    assert (
        "answer_column: the data set has no column 'answer', so its rows have no gold answer; it has: prompt, label"
        in (caplog.text)
    )
    caplog.clear()
    Tabular(rows, val_size=1, answer_column=None).prompts("train")
    Tabular(rows, val_size=1, answer_column="label").prompts("train")
    assert caplog.text == ""
    with pytest.raises(ConfigError, match=r"answer_column: the data set has no column 'gold'; it has: prompt, label"):
        Tabular(rows, val_size=1, answer_column="gold").prompts("train")


# -- what a row remembers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "options", "is_text"),
    [
        ({"prompt": "Hi"}, {}, True),
        ({"prompt": "Hi"}, {"system_prompt": "Be short."}, True),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, {}, False),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, {"system_prompt": "Be short."}, False),
        ({"prompt": [{"role": "user", "content": "Hi"}], "q": "Hi"}, {"prompt_template": "{q}?"}, True),
    ],
)
def test_a_row_remembers_whether_its_prompt_was_a_text(row: Any, options: Any, is_text: bool) -> None:
    (prompt,) = Tabular([row, row], val_size=1, answer_column=None, **options).prompts("train")
    assert prompt.is_text == is_text
    assert prompt.sample("").prompt_is_text == is_text


def test_the_questions_of_the_other_tasks_are_texts(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n' * 3)
    for task in (GSM8K(str(tmp_path), val_size=1), Arithmetic(), Extraction(), Programs()):
        assert all(prompt.is_text for prompt in task.prompts("train")[:3]), type(task)


def test_all_columns_are_at_hand_and_none_is_metadata_until_asked_for(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2", "level": 3}\n' * 2)
    prompts = GSM8K(str(tmp_path), val_size=1).prompts("train")
    assert [dict(prompt.metadata) for prompt in prompts] == [{}]
    assert dict(prompts[0].columns) == {"question": "1+1?", "answer": "2\n#### 2", "level": 3}
    assert "nothing" not in prompts[0].columns
    verifier = FunctionVerifier(lambda completions, answer, level: [f"{answer[0]}{level[0]}" == "23"])
    (prompt,) = with_columns(prompts, [verifier])
    assert verifier.verify(prompt.sample("")).correct, "the answer is the gold one, not the column of its name"


def test_a_cell_that_a_row_lacks_is_none() -> None:
    (prompt,) = Tabular([{"prompt": "a"}, {"prompt": "b", "level": 1}], val_size=1, answer_column=None).prompts("train")
    assert prompt.columns["level"] in (None, 1)
    assert len(prompt.columns) == 2


def test_prompts_are_equal_whatever_else_their_rows_hold() -> None:
    assert Prompt([], "1", columns={"a": 1}) == Prompt([], "1")
    assert Prompt([], "1", is_chat=True) != Prompt([], "1")
