from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import WriteRows

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks import Tabular, check_controls
from grpo_lightning.tasks._load import open_hub
from grpo_lightning.tasks.tabular import hold_out
from grpo_lightning.tasks.template import fields, fill
from grpo_lightning.verifiers import MathVerifier

ROWS = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(10)]
KEY = r"data\.task\.init_args\."


# --- loading rows


def test_jsonl_file_is_the_train_split(write_jsonl: WriteRows) -> None:
    task = Tabular(str(write_jsonl("quiz.jsonl", ROWS)), val_size=2)
    assert len(task.prompts("train")) == 8
    assert len(task.prompts("val")) == 2
    prompt = task.prompts("train")[0]
    assert [message["role"] for message in prompt.messages] == ["user"]
    assert prompt.messages[0]["content"] == f"What is {int(prompt.answer) - 1} + 1?"


def test_json_array(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps(ROWS))
    assert [prompt.answer for prompt in Tabular(str(tmp_path)).prompts("test")] == [row["answer"] for row in ROWS]


def test_csv_answers_stay_exactly_as_written(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text('prompt,answer\r\nA,"1,234"\r\nB,007\r\nC,1.50\r\n"D, or\nnot",NA\r\n')
    prompts = Tabular(str(tmp_path)).prompts("test")
    assert [prompt.answer for prompt in prompts] == ["1,234", "007", "1.50", "NA"]
    assert prompts[3].messages[0]["content"] == "D, or\nnot"


def test_a_csv_cell_may_hold_a_document(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(f"prompt,answer\n{200_000 * 'x'},1\n")
    (prompt,) = Tabular(str(tmp_path)).prompts("test")
    assert len(prompt.messages[0]["content"]) == 200_000


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "test-00000-of-00001.parquet")
    assert [prompt.answer for prompt in Tabular(str(tmp_path)).prompts("test")] == [row["answer"] for row in ROWS]


def test_json_objects_with_different_keys_stay_unchanged(write_jsonl: WriteRows) -> None:
    schemas = [{"type": "object", "required": ["a"]}, {"type": "string", "maxLength": 3}]
    file = write_jsonl("test.jsonl", [{"prompt": "Go.", "schema": schema} for schema in schemas])
    task = Tabular(str(file.parent), answer_column=None, metadata_columns=["schema"])
    assert [prompt.metadata["schema"] for prompt in task.prompts("test")] == schemas


def test_metadata_columns_may_be_renamed(write_jsonl: WriteRows) -> None:
    file = write_jsonl("test.jsonl", [{"prompt": "Go.", "test_list": ["assert f()"], "name": "f"}])
    for columns, metadata in (
        ({"tests": "test_list", "entry_point": "name"}, {"tests": ["assert f()"], "entry_point": "f"}),
        (["test_list"], {"test_list": ["assert f()"]}),
        ((), {}),
    ):
        task = Tabular(str(file.parent), answer_column=None, metadata_columns=columns)
        assert [prompt.metadata for prompt in task.prompts("test")] == [metadata]


def test_local_files_do_not_import_the_hub_library(write_jsonl: WriteRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(Tabular(str(write_jsonl("quiz.jsonl", ROWS)), val_size=1).prompts("val")) == 1


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        ConfigError, match=KEY + r"path: there is no folder nobody/there-is.*cache of the hub.*give a local folder"
    ):
        Tabular("nobody/there-is-no-such-data-set").prompts("train")


def test_a_data_set_of_the_hub_library(write_jsonl: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads a folder like a repository on the hub, so this path is tested without a network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl("repository/train.jsonl", ROWS)
    folder = write_jsonl("repository/test.jsonl", ROWS[:3]).parent
    tables = {split: load() for split, load in open_hub(str(folder), None).items()}
    assert {split: [dict(row) for row in table.rows] for split, table in tables.items()} == {
        "train": ROWS,
        "test": ROWS[:3],
    }
    assert tables["test"].columns == ["prompt", "answer"]
    assert tables["test"].value(1, "answer") == "2"
    assert tables["test"].where(1) == f"row 2 of {folder}, split test"


def test_filters_keep_the_rows_with_the_values(write_jsonl: WriteRows, tmp_path: Path) -> None:
    rows = [row | {"level": number % 3, "kind": "ab"[number % 2]} for number, row in enumerate(ROWS)]
    expected = [row["answer"] for row in rows if row["level"] in (0, 2) and row["kind"] == "a"]
    filters = {"level": [0, 2], "kind": "a"}
    lines = write_jsonl("jsonl/test.jsonl", rows)
    table = tmp_path / "csv" / "test.csv"
    table.parent.mkdir()
    table.write_text("prompt,answer,level,kind\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
    data_set = pytest.importorskip("datasets").Dataset.from_list(rows)
    for path in (str(lines.parent), str(table.parent), {"test": rows}, {"test": data_set}):
        assert [prompt.answer for prompt in Tabular(path, filters=filters).prompts("test")] == expected
    # Of a stream, the rows that match count.
    stream = data_set.to_iterable_dataset()
    few = Tabular({"train": stream, "val": stream, "test": stream}, filters=filters, limit=2, val_size=1)
    assert [prompt.answer for prompt in few.prompts("test")] == expected[:2]
    with pytest.raises(ConfigError, match=KEY + "filters: the data set has no column 'topic'"):
        Tabular({"test": rows}, filters={"topic": 1}).prompts("test")
    with pytest.raises(ConfigError, match=KEY + r"filters: no row of .* has \{'level': 7\}"):
        Tabular({"test": rows}, filters={"level": 7}).prompts("test")


@pytest.mark.parametrize("cell", ["true", "True", "TRUE"])
def test_a_filter_finds_true_as_a_csv_file_spells_it(tmp_path: Path, cell: str) -> None:
    (tmp_path / "test.csv").write_text(f"prompt,answer,ok\nA,1,{cell}\nB,2,false\nC,3,1\n")
    prompts = Tabular(str(tmp_path), filters={"ok": True}).prompts("test")
    assert [prompt.answer for prompt in prompts] == ["1"]


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere", "nowhere/train.jsonl"])
def test_a_local_path_that_does_not_exist(path: str) -> None:
    with pytest.raises(ConfigError, match=KEY + f"path: the file or folder {path} does not exist; give one that does"):
        Tabular(path).prompts("train")


def test_a_folder_without_data_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ConfigError, match=KEY + r"path: the folder .* contains no data file; put train\.jsonl"):
        Tabular(str(tmp_path)).prompts("train")


def test_a_file_of_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "rows.xml").write_text("<rows/>")
    with pytest.raises(ConfigError, match=KEY + r"path: .*rows\.xml is not one of \.jsonl.*convert it"):
        Tabular(str(tmp_path / "rows.xml")).prompts("train")


def test_two_files_of_one_split(write_jsonl: WriteRows) -> None:
    write_jsonl("train.jsonl", ROWS)
    folder = write_jsonl("train.csv", ROWS).parent
    with pytest.raises(ConfigError, match=KEY + r"path: train\.csv, train\.jsonl in .* are the same split; keep one"):
        Tabular(str(folder)).prompts("train")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("rows.jsonl", '{"prompt": "A"}\n\n{"prompt":', r"line 3 is not JSON"),
        ("rows.jsonl", '{"prompt": "A"}\n[1]\n', r"line 2 is not a JSON object"),
        ("rows.json", '{"prompt": "A"}', r"it is not an array of objects"),
        ("rows.json", "[1]", r"element 1 is not a JSON object"),
        ("rows.csv", "prompt,answer\nA,1\nB\n", r"line 3 has 1 fields, the header has 2"),
        ("rows.csv", "a,b,a\n1,2,3\n", r"the header names a column twice"),
        ("rows.csv", 'prompt,answer\nA,"1\n', r"unexpected end of data"),
        ("rows.parquet", "not parquet", r"Parquet magic bytes not found"),
    ],
)
def test_a_broken_file(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=KEY + rf"path: cannot read .*{name}: (?s:.*){reason}"):
        Tabular(str(tmp_path / name)).prompts("train")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("prompt,answer\nÄ,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot read .*rows\.csv: 'utf-8' codec"):
        Tabular(str(tmp_path / "rows.csv")).prompts("train")


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", "\n"), ("rows.json", "[]"), ("rows.csv", "prompt,answer\n")])
def test_an_empty_data_set(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=KEY + rf"path: .*{name} has no rows; add rows or give another path"):
        Tabular(str(tmp_path / name)).prompts("train")


# --- splits


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_a_validation_split_of_the_data_is_used(write_jsonl: WriteRows, name: str) -> None:
    write_jsonl(f"{name}.jsonl", ROWS[:3])
    task = Tabular(str(write_jsonl("train.jsonl", ROWS[3:]).parent))
    assert [prompt.answer for prompt in task.prompts("val")] == ["1", "2", "3"]
    assert len(task.prompts("train")) == 7


def test_splits_with_the_data_sets_own_names(write_jsonl: WriteRows) -> None:
    write_jsonl("learn.jsonl", ROWS[:5])
    folder = write_jsonl("exam.jsonl", ROWS[5:]).parent
    task = Tabular(str(folder), splits={"train": "learn", "val": "exam", "test": "exam"})
    assert task.prompts("val") == task.prompts("test")
    assert len(task.prompts("train")) == 5


def test_a_named_split_that_does_not_exist_is_an_error(write_jsonl: WriteRows) -> None:
    task = Tabular(str(write_jsonl("train.jsonl", ROWS).parent), splits={"val": "exam"})
    with pytest.raises(ConfigError, match=KEY + r"splits: .* has no split 'exam' to use as val; it has: train"):
        task.prompts("val")


def test_an_unknown_split_name() -> None:
    with pytest.raises(ConfigError, match=KEY + r"splits: 'validation' is not a split; name only train, val, test"):
        Tabular("x", splits={"validation": "dev"})


@given(rows=st.integers(2, 300), seed=st.integers(0, 10), data=st.data())
def test_hold_out_splits_the_rows(rows: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, rows - 1))
    train, val = hold_out(rows, size, seed)
    assert len(val) == size
    assert sorted(train + val) == list(range(rows))
    assert (train, val) == hold_out(rows, size, seed)


# --- columns


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prompt_column", "question"),
        ("prompt_template", "Q: {question}"),
        ("answer_column", "question"),
        ("solution_column", "question"),
        ("metadata_columns", ["question"]),
        ("metadata_columns", {"tests": "question"}),
    ],
)
def test_a_missing_column_is_named(write_jsonl: WriteRows, option: str, value: Any) -> None:
    task = Tabular(str(write_jsonl("rows.jsonl", ROWS)), val_size=1, **{option: value})
    with pytest.raises(ConfigError, match=KEY + rf"{option}: the data set has no column 'question'; it has: prompt, a"):
        task.prompts("train")


@pytest.mark.parametrize("column", ["prompt", "answer", "steps"])
@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_a_missing_value_is_named(write_jsonl: WriteRows, column: str, value: Any) -> None:
    good = {"prompt": "A", "answer": "1", "steps": "#### 1"}
    file = write_jsonl("test.jsonl", [good, {**good, column: value}])
    with pytest.raises(ConfigError, match=rf"row 2 of .*test\.jsonl has no value in column '{column}'; fill it in"):
        Tabular(str(file.parent), solution_column="steps").prompts("test")


def test_a_row_that_lacks_the_key(write_jsonl: WriteRows) -> None:
    file = write_jsonl("test.jsonl", [ROWS[0], {"prompt": "A"}])
    with pytest.raises(ConfigError, match=r"row 2 of .* has no value in column 'answer'"):
        Tabular(str(file.parent)).prompts("test")


def test_chat_messages_as_the_prompt(write_jsonl: WriteRows) -> None:
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]
    file = write_jsonl("test.jsonl", [{"prompt": own[1:], "answer": "1"}, {"prompt": own, "answer": "1"}])
    first, second = Tabular(str(file.parent), system_prompt="Be brief.").prompts("test")
    user = {"role": "user", "content": "Hi"}
    assert first.messages == [{"role": "system", "content": "Be brief."}, user]
    assert second.messages == [{"role": "system", "content": "Own."}, user]


def test_messages_keep_all_that_a_chat_template_may_read() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    chat = [
        {"role": "user", "content": "Weather?", "name": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "17", "name": "weather", "tool_call_id": "1"},
    ]
    data_set = pytest.importorskip("datasets").Dataset.from_list([{"prompt": chat, "answer": "17"}])
    assert "tool_calls" in data_set[0]["prompt"][0], "all messages have all keys there"
    for rows in ([{"prompt": chat, "answer": "17"}], data_set):
        (prompt,) = Tabular({"test": rows}).prompts("test")
        assert prompt.messages == chat


@pytest.mark.parametrize(
    "prompt",
    [
        5,
        {"role": "user", "content": "Hi"},
        [],
        ["Hi"],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    ],
)
def test_a_prompt_that_is_neither_text_nor_chat(write_jsonl: WriteRows, prompt: Any) -> None:
    file = write_jsonl("test.jsonl", [{"prompt": prompt, "answer": "1"}])
    message = KEY + r"prompt_column: column 'prompt' of row 1 of .* is neither a text nor a list"
    with pytest.raises(ConfigError, match=message):
        Tabular(str(file.parent)).prompts("test")


def test_prompt_column_and_template_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"prompt_column and prompt_template exclude each other; keep one"):
        Tabular("x", prompt_column="a", prompt_template="{b}")


@pytest.mark.parametrize(("option", "value"), [("val_size", 0), ("limit", 0)])
def test_a_size_below_one(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=KEY + rf"{option}: 0 must be at least 1"):
        Tabular("x", **{option: value})


# --- templates and gold answers


def test_prompt_template_of_several_columns(write_jsonl: WriteRows) -> None:
    row = {"question": "Which {one}?", "options": ["a", "ß"], "answer": "a"}
    file = write_jsonl("test.jsonl", [row])
    task = Tabular(str(file.parent), prompt_template="{question} {{pick}}\n{options}")
    assert task.prompts("test")[0].messages[0]["content"] == 'Which {one}? {pick}\n["a", "ß"]'


@given(values=st.dictionaries(st.sampled_from(["a", "b c", "a.b[0]", "ü"]), st.text(), min_size=1), glue=st.text())
def test_values_are_inserted_verbatim(values: dict[str, str], glue: str) -> None:
    escaped = glue.replace("{", "{{").replace("}", "}}")
    template = "".join(f"{escaped}{{{name}}}" for name in values)
    assert fields(template) == set(values)
    assert fill(template, values) == "".join(f"{glue}{value}" for value in values.values())


@given(st.text())
def test_a_template_never_raises(template: str) -> None:
    fill(template, dict.fromkeys(fields(template), ""))


def test_gold_format(write_jsonl: WriteRows) -> None:
    folder = str(write_jsonl("test.jsonl", ROWS).parent)
    task = Tabular(folder, gold_format=r"So \boxed{{{answer}}}")
    prompt = task.prompts("test")[0]
    assert task.gold_completion(prompt) == prompt.solution == r"So \boxed{1}"
    with pytest.raises(ConfigError, match=KEY + r"gold_format: '\{label\}' must contain \{answer\}"):
        Tabular(folder, gold_format="{label}")


def test_a_solution_column_is_the_gold_completion(write_jsonl: WriteRows) -> None:
    file = write_jsonl("test.jsonl", [{"prompt": "1+1", "answer": "2", "proof": "1+1=2\n#### 2"}])
    task = Tabular(str(file.parent), solution_column="proof")
    assert task.gold_completion(task.prompts("test")[0]) == "1+1=2\n#### 2"


def test_a_chat_of_one_answer_is_a_solution() -> None:
    answer = {"role": "assistant", "content": "It is 2.", "tool_calls": None}
    rows = [{"prompt": "1+1", "answer": "2", "completion": value} for value in ([answer], "It is 2.", 2)]
    prompts = Tabular({"test": rows}, solution_column="completion").prompts("test")
    assert [prompt.solution for prompt in prompts] == ["It is 2.", "It is 2.", "2"]


@pytest.mark.parametrize(
    "solution",
    [
        {"role": "assistant", "content": "2"},
        [{"role": "user", "content": "2"}],
        [{"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": [{"type": "text", "text": "2"}]}],
        [{"role": "assistant", "content": "2", "tool_calls": [{"function": {}}]}],
        ["2"],
    ],
)
def test_any_other_list_is_no_solution(solution: Any) -> None:
    rows = [{"prompt": "1+1", "answer": "2", "completion": value} for value in ("#### 2", solution)]
    with pytest.raises(ConfigError, match=KEY + r"solution_column: column 'completion' of row 2 of .* is neither a te"):
        Tabular({"test": rows}, solution_column="completion").prompts("test")


def test_no_gold_completion_without_answer_and_solution(write_jsonl: WriteRows) -> None:
    task = Tabular(str(write_jsonl("test.jsonl", ROWS).parent), answer_column=None)
    with pytest.raises(ConfigError, match=r"needs answer_column or solution_column; give one of them"):
        task.gold_completion(task.prompts("test")[0])


def test_gold_answers_pass_the_verifier(write_jsonl: WriteRows) -> None:
    folder = str(write_jsonl("test.jsonl", ROWS).parent)
    for gold_format in ("#### {answer}", r"\boxed{{{answer}}}", "The answer is {answer}."):
        assert list(check_controls(Tabular(folder, gold_format=gold_format), [MathVerifier()], splits=["test"])) == []


def test_a_solution_that_contradicts_its_answer_is_reported(write_jsonl: WriteRows) -> None:
    rows = [{"prompt": "1+1", "answer": "2", "proof": f"1+1={n}\n#### {n}"} for n in (2, 3, 2)]
    task = Tabular(str(write_jsonl("test.jsonl", rows).parent), solution_column="proof")
    assert [failure.row for failure in check_controls(task, [MathVerifier()], splits=["test"])] == [1]


def test_a_check_skips_splits_that_the_data_does_not_have(
    write_jsonl: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "1+1", "answer": "2", "proof": f"1+1={n}\n#### {n}"} for n in (2, 3, 3)]
    task = Tabular(str(write_jsonl("rows.jsonl", rows)), solution_column="proof", val_size=1)
    found = {(failure.split, failure.completion) for failure in check_controls(task, [MathVerifier()])}
    assert {completion for _, completion in found} == {"1+1=3\n#### 3"}
    assert {split for split, _ in found} <= {"train", "val"}
    assert caplog.messages == ["data.task: the data has no test split, which is therefore not checked"]
    with pytest.raises(ConfigError, match=KEY + r"path: .*rows\.jsonl has no test split"):
        list(check_controls(task, [MathVerifier()], splits=["test"]))


def test_a_check_does_not_take_a_wrong_split_name_for_a_missing_split(write_jsonl: WriteRows) -> None:
    task = Tabular(str(write_jsonl("rows.jsonl", ROWS)), val_size=1, splits={"test": "exam"})
    with pytest.raises(ConfigError, match=KEY + r"splits: .* has no split 'exam' to use as test"):
        list(check_controls(task, [MathVerifier()]))


@pytest.mark.parametrize(
    ("option", "template", "reason"),
    [
        ("prompt_template", "Solve {question", r"has a single '\{'; close the braces"),
        ("prompt_template", "Solve {question} question}", r"has a single '\}'; close the braces"),
        ("prompt_template", "{question} as {{a}", r"has a single '\}'"),
        ("prompt_template", "Solve this", "names no column, so all prompts would be the same"),
        ("prompt_template", "", "names no column"),
        ("prompt_template", "{{question}}", "names no column"),
        ("prompt_template", "Solve {}", "names no column"),
        ("gold_format", "#### {answer", r"has a single '\{'"),
        ("gold_format", "#### answer", r"must contain \{answer\} and no other field"),
    ],
)
def test_a_template_with_a_brace_or_a_column_missing(option: str, template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=KEY + option + ": .*" + reason):
        Tabular("x", **{option: template})


def test_an_empty_pair_of_braces_is_text(write_jsonl: WriteRows) -> None:
    folder = str(write_jsonl("test.jsonl", ROWS).parent)
    task = Tabular(folder, prompt_template=r"{prompt} Put it in \boxed{}. {{n}}")
    assert task.prompts("test")[0].messages[0]["content"] == r"What is 0 + 1? Put it in \boxed{}. {n}"
