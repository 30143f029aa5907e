"""A task for any data set of rows and columns, configured by column names."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._load import Row, Table, given_splits, open_splits
from grpo_lightning.tasks.base import SPLITS, MissingSplit, Split, Task, with_examples
from grpo_lightning.tasks.template import checked_fields, fields, fill
from grpo_lightning.types import Prompt

log = logging.getLogger(__name__)

_ARGS = "data.task.init_args"
_ANSWER = "answer"
_USUAL_NAMES: Mapping[Split, Sequence[str]] = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class Tabular(Task):
    """Rows of a local file or folder, or of a data set on the Hugging Face hub.

    In YAML::

        task:
          class_path: Tabular
          init_args:
            path: data/quiz            # holds train.jsonl and test.jsonl
            prompt_template: "{question}\\nOptions: {options}"
            answer_column: label
            gold_format: "The answer is {answer}"

    In a template, ``{column}`` is replaced with the row's value: a string as it is, anything else as JSON. Braces in
    the value are not interpreted. ``{{`` and ``}}`` are literal braces.

    Args:
        path: a ``.jsonl``, ``.json`` (an array), ``.csv`` or ``.parquet`` file, which is the train split; a folder
            with ``train.jsonl``, ``test.jsonl`` and so on, or one that ``save_to_disk`` wrote; or the name of a data
            set on the hub. In Python also the rows themselves: a list of dicts or a ``datasets.Dataset``, which is the
            train split, or a mapping from split names to these. Of an ``IterableDataset`` only the first rows are read,
            as many as ``limit`` requires.
        name: the data set's config on the hub; in a local folder, the subfolder of that name if it exists.
        prompt_column: the column with the prompt, as text or as a list of chat messages. Default: ``prompt``, unless
            ``prompt_template`` is given.
        prompt_template: a template that builds the prompt from several columns, instead of ``prompt_column``.
        answer_column: the column with the gold answer; ``None`` if the verifier needs none. If the data has no column
            of the default name, the rows have no answer. CSV answers stay text, exactly as written.
        solution_column: the column with a worked solution, used for SFT and as the gold completion: a text, or a chat
            of one message, the assistant's.
        metadata_columns: columns that the verifier reads from ``metadata``, such as ``schema`` or ``tests``. A mapping
            renames them: ``{tests: test_list}`` gives the column ``test_list`` as ``metadata["tests"]``. Functions
            written for TRL get the columns that they name without this option.
        gold_format: a template that turns the gold answer, ``{answer}``, into a completion. Without ``solution_column``
            the result is the gold completion and the target of SFT.
        splits: the data set's names for ``train``, ``val`` and ``test``. Without a name for ``val`` the usual names are
            tried; if none exists, ``val_size`` rows of the train split are held out.
        val_size: number of train rows held out if the data has no validation split.
        seed: random seed that selects the held-out rows.
        filters: keep only the rows whose columns have these values: ``{level: [4, 5], type: algebra}``. A list names
            several values.
        limit: keep only the first ``limit`` rows of each split.
        system_prompt: the system message put before every prompt that does not have one already.
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models.
        shots: number of worked examples before every prompt, as turns of the chat: the same train rows for every row,
            selected by ``seed`` and taken out of the train split. They need a solution.
    """

    solution_fix: ClassVar[str] = f"name its column with {_ARGS}.solution_column, or give answer_column"

    def __init__(
        self,
        path: str | Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]],
        name: str | None = None,
        prompt_column: str | None = None,
        prompt_template: str | None = None,
        answer_column: str | None = _ANSWER,
        solution_column: str | None = None,
        metadata_columns: Sequence[str] | Mapping[str, str] = (),
        gold_format: str = "#### {answer}",
        splits: Mapping[str, str] | None = None,
        val_size: int = 200,
        seed: int = 0,
        limit: int | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        shots: int = 0,
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(system_prompt, chat_template)
        if prompt_column is not None and prompt_template is not None:
            raise ConfigError(f"{_ARGS}: prompt_column and prompt_template exclude each other; keep one of them")
        if prompt_template is not None and not checked_fields(prompt_template, f"{_ARGS}.prompt_template"):
            raise ConfigError(
                f"{_ARGS}.prompt_template: {prompt_template!r} names no column, so all prompts would be the same; "
                "name one in braces, such as {question}"
            )
        if checked_fields(gold_format, f"{_ARGS}.gold_format") != {"answer"}:
            raise ConfigError(f"{_ARGS}.gold_format: {gold_format!r} must contain {{answer}} and no other field")
        unknown = sorted(set(splits or {}) - set(SPLITS))
        if unknown:
            raise ConfigError(f"{_ARGS}.splits: {unknown[0]!r} is not a split; name only {', '.join(SPLITS)}")
        if val_size < 1:
            raise ConfigError(f"{_ARGS}.val_size: {val_size} must be at least 1")
        if limit is not None and limit < 1:
            raise ConfigError(f"{_ARGS}.limit: {limit} must be at least 1, or null for all rows")
        if shots < 0:
            raise ConfigError(f"{_ARGS}.shots: {shots} must be at least 0")
        self.path = path
        self._source_name = path if isinstance(path, str) else "the data given"
        self.name = name
        self.prompt_column: str = prompt_column or "prompt"
        # Its names are those of columns, so it is not the task's own template.
        self.column_template = prompt_template
        self.answer_column = answer_column
        self.solution_column = solution_column
        if not isinstance(metadata_columns, Mapping):
            metadata_columns = {column: column for column in metadata_columns}
        # Maps names in the metadata to columns.
        self.metadata_columns = dict(metadata_columns)
        self.gold_format = gold_format
        self.splits = dict(splits or {})
        self.val_size = val_size
        self.seed = seed
        self.limit = limit
        self.shots = shots
        self.filters = dict(filters or {})
        self._said_no_answer = False

    def prompts(self, split: Split) -> Sequence[Prompt]:
        table, rows = self._rows(split)
        self._require_columns(table)
        prompts = [replace(self._prompt(table, row), columns=Row(table, row)) for row in rows[: self.limit]]
        return with_examples(prompts, self._examples)

    def gold_completion(self, prompt: Prompt) -> str:
        if prompt.solution is None:
            raise ConfigError(f"{_ARGS}: a gold completion needs answer_column or solution_column; give one of them")
        return prompt.solution

    def _prompt(self, table: Table, row: int) -> Prompt:
        answer_column = self._answer_column(table)
        answer = None if answer_column is None else table.value(row, answer_column)
        solution = None if answer is None else fill(self.gold_format, {"answer": answer})
        if self.solution_column is not None:
            solution = _solution(table, row, self.solution_column)
        metadata = {name: table.rows[row].get(column) for name, column in self.metadata_columns.items()}
        return Prompt(self._messages(table, row), answer, metadata, solution, is_chat=self._is_chat(table, row))

    def _answer_column(self, table: Table) -> str | None:
        absent = self.answer_column == _ANSWER and _ANSWER not in table.columns
        return None if absent else self.answer_column

    def _is_chat(self, table: Table, row: int) -> bool:
        return self.column_template is None and not isinstance(table.value(row, self.prompt_column), str)

    def _messages(self, table: Table, row: int) -> list[dict[str, Any]]:
        if self.column_template is not None:
            values = {column: table.value(row, column) for column in fields(self.column_template)}
            return self.chat(fill(self.column_template, values))
        prompt = table.value(row, self.prompt_column)
        if isinstance(prompt, str):
            return self.chat(prompt)
        if not _is_chat(prompt):
            raise ConfigError(
                f"{_ARGS}.prompt_column: column {self.prompt_column!r} of {table.where(row)} is neither a text nor a "
                f"list of chat messages, each with a text as role and content and the last not the assistant's; "
                f"choose another column or build the prompt with prompt_template"
            )
        # A Dataset gives every message the keys of all, with null where it has none.
        chat = [{key: value for key, value in message.items() if value is not None} for message in prompt]
        if self.system_prompt and chat[0]["role"] != "system":
            return [{"role": "system", "content": self.system_prompt}, *chat]
        return chat

    def _require_columns(self, table: Table) -> None:
        if self.column_template is None:
            table.require(self.prompt_column, f"{_ARGS}.prompt_column")
        else:
            for column in sorted(fields(self.column_template)):
                table.require(column, f"{_ARGS}.prompt_template")
        answer_column = self._answer_column(table)
        if answer_column is not None:
            table.require(answer_column, f"{_ARGS}.answer_column")
        elif self.answer_column is not None and not self._said_no_answer:
            self._said_no_answer = True  # once, not once per split
            log.warning(
                "%s.answer_column: the data set has no column %r, so its rows have no gold answer; it has: %s",
                _ARGS, _ANSWER, ", ".join(table.columns),
            )  # fmt: skip
        if self.solution_column is not None:
            table.require(self.solution_column, f"{_ARGS}.solution_column")
        for column in self.metadata_columns.values():
            table.require(column, f"{_ARGS}.metadata_columns")

    @cached_property
    def _source(self) -> Mapping[str, Any]:
        if isinstance(self.path, str):
            return open_splits(self.path, self.name)
        # Rows for validation and examples may be held out of them.
        most_rows = None if self.limit is None else self.limit + self.val_size + self.shots
        return given_splits(self.path, most_rows, self.filters)

    def _rows(self, split: Split) -> tuple[Table, Sequence[int]]:
        """Return the table that contains a split, and the split's row numbers in it."""
        table, rows = self._rows_with_examples(split)
        if self.shots and self._split_name(split) == self._split_name("train"):
            rows = [row for row in rows if row not in self._example_rows]
        return table, rows

    def _rows_with_examples(self, split: Split) -> tuple[Table, Sequence[int]]:
        if split == "test" or self._split_name("val") is not None:
            table = self._table(split)
            return table, range(len(table.rows))
        table = self._table("train")
        train, val = hold_out(len(table.rows), self.val_size, self.seed)
        return table, train if split == "train" else val

    @cached_property
    def _example_rows(self) -> Sequence[int]:
        """The numbers of the rows that are the worked examples, in the table of the train split."""
        _, train = self._rows_with_examples("train")
        return [train[place] for place in hold_out(len(train), self.shots, self.seed, "shots")[1]]

    @cached_property
    def _examples(self) -> Sequence[Prompt]:
        if not self.shots:
            return ()
        if self._split_name("train") is None:
            raise ConfigError(
                f"{_ARGS}.shots: {self._source_name} has no train split to take worked examples from; set shots to 0"
            )
        table = self._table("train")
        self._require_columns(table)
        examples = [self._prompt(table, row) for row in self._example_rows]
        for row, example in zip(self._example_rows, examples, strict=True):
            if example.solution is None:
                raise ConfigError(f"{_ARGS}.shots: {table.where(row)} has no solution to show; {self.solution_fix}")
        return examples

    def _table(self, split: Split) -> Table:
        name = self._split_name(split)
        if name is None:
            raise MissingSplit(
                f"{_ARGS}.path: {self._source_name} has no {split} split; it has: {', '.join(self._source)}; "
                f"add the split, or choose one with splits: {{{split}: ...}}"
            )
        table: Table = self._source[name]()
        return table.filtered(self.filters)

    def _split_name(self, split: Split) -> str | None:
        if split not in self.splits:
            return next((name for name in _USUAL_NAMES[split] if name in self._source), None)
        if self.splits[split] not in self._source:
            raise ConfigError(
                f"{_ARGS}.splits: {self._source_name} has no split {self.splits[split]!r} to use as {split}; "
                f"it has: {', '.join(self._source)}"
            )
        return self.splits[split]


def hold_out(rows: int, size: int, seed: int, key: str = "val_size") -> tuple[list[int], list[int]]:
    """Split row numbers into those kept and ``size`` held out, each in ascending order, the same in every run.

    Raises:
        ConfigError: none is kept; ``key`` is the option that says how many to hold out.
    """
    if size >= rows:
        raise ConfigError(f"{_ARGS}.{key}: {size} leaves none of {rows} rows to train on; lower it")
    generator = random.Random(seed)
    # Only random() is guaranteed to give the same sequence in every version of Python.
    shuffled = sorted(range(rows), key=lambda _: generator.random())
    return sorted(shuffled[size:]), sorted(shuffled[:size])


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
        and prompt[-1]["role"] != "assistant"
    )


def _solution(table: Table, row: int, column: str) -> str:
    """The text of a solution: a text, or a chat of one answer of the assistant."""
    value = table.value(row, column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        message = {key: item for key, item in value[0].items() if item is not None}
        if message.keys() == {"role", "content"} and message["role"] == "assistant" and message["content"]:
            value = message["content"]
    if isinstance(value, (list, tuple, dict)):
        raise ConfigError(
            f"{_ARGS}.solution_column: column {column!r} of {table.where(row)} is neither a text nor a chat of one "
            "message, the assistant's, with a text as content; choose another column"
        )
    return str(value)
