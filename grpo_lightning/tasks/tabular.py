"""Any data set of rows and columns, by the names of its columns."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._load import Table, open_splits
from grpo_lightning.tasks.base import SPLITS, MissingSplit, Split, Task
from grpo_lightning.types import Prompt

_ARGS = "data.task.init_args"
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

    In a template ``{column}`` stands for the row's value: a string as it is, anything else as JSON. What the value
    itself contains is never interpreted. ``{{`` and ``}}`` stand for single braces.

    Args:
        path: a ``.jsonl``, ``.json`` (an array), ``.csv`` or ``.parquet`` file, which is the train split; a folder
            that holds ``train.jsonl``, ``test.jsonl`` and the like; or a data set's name on the hub.
        name: the data set's config on the hub; in a local folder, the subfolder of that name if there is one.
        prompt_column: holds the prompt, as text or as a list of chat messages. ``prompt`` where neither this nor
            ``prompt_template`` is given.
        prompt_template: composes the prompt of several columns, in place of ``prompt_column``.
        answer_column: holds the gold answer; ``None`` where the verifier needs none. CSV answers stay text, exactly as
            written.
        solution_column: holds a worked solution, for SFT and as the gold completion.
        metadata_columns: columns that the verifier reads from ``metadata``, such as ``schema`` or ``tests``. A mapping
            renames them: ``{tests: test_list}`` gives the column ``test_list`` as ``metadata["tests"]``.
        gold_format: the gold answer, ``{answer}``, as a completion. Where there is no ``solution_column`` it is the
            gold completion, and what SFT learns from.
        splits: the data set's own names of ``train``, ``val`` and ``test``. Without a name for ``val`` the usual ones
            are tried, and if there is none, ``val_size`` rows of the train split are held out.
        val_size: how many train rows are held out where the data has no validation split.
        seed: chooses the held-out rows.
        limit: keep only the first rows of each split.
        system_prompt: put before every prompt that does not bring a system message of its own.
        chat_template: a Jinja chat template in place of the tokenizer's own.
    """

    solution_mend: ClassVar[str] = f"name the column that holds it by {_ARGS}.solution_column, or give answer_column"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        prompt_column: str | None = None,
        prompt_template: str | None = None,
        answer_column: str | None = "answer",
        solution_column: str | None = None,
        metadata_columns: Sequence[str] | Mapping[str, str] = (),
        gold_format: str = "#### {answer}",
        splits: Mapping[str, str] | None = None,
        val_size: int = 200,
        seed: int = 0,
        limit: int | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(system_prompt, chat_template)
        if prompt_column is not None and prompt_template is not None:
            raise ConfigError(f"{_ARGS}: prompt_column and prompt_template are both given; keep one of them")
        if prompt_template is not None and not checked_fields(prompt_template, f"{_ARGS}.prompt_template"):
            raise ConfigError(
                f"{_ARGS}.prompt_template: {prompt_template!r} names no column, so all prompts would be the same; "
                "name one in braces, such as {question}"
            )
        if checked_fields(gold_format, f"{_ARGS}.gold_format") != {"answer"}:
            raise ConfigError(f"{_ARGS}.gold_format: {gold_format!r} must name {{answer}}, and nothing else")
        unknown = sorted(set(splits or {}) - set(SPLITS))
        if unknown:
            raise ConfigError(f"{_ARGS}.splits: {unknown[0]!r} is no split; name only {', '.join(SPLITS)}")
        if val_size < 1:
            raise ConfigError(f"{_ARGS}.val_size: {val_size} must be at least 1")
        if limit is not None and limit < 1:
            raise ConfigError(f"{_ARGS}.limit: {limit} must be at least 1, or null for all rows")
        self.path = path
        self.name = name
        self.prompt_column: str = prompt_column or "prompt"
        self.prompt_template = prompt_template
        self.answer_column = answer_column
        self.solution_column = solution_column
        if not isinstance(metadata_columns, Mapping):
            metadata_columns = {column: column for column in metadata_columns}
        # The columns by their names in the metadata.
        self.metadata_columns = dict(metadata_columns)
        self.gold_format = gold_format
        self.splits = dict(splits or {})
        self.val_size = val_size
        self.seed = seed
        self.limit = limit

    def prompts(self, split: Split) -> Sequence[Prompt]:
        table, rows = self._rows(split)
        self._require_columns(table)
        return [self._prompt(table, row) for row in rows[: self.limit]]

    def gold_completion(self, prompt: Prompt) -> str:
        if prompt.solution is None:
            raise ConfigError(f"{_ARGS}: a gold completion needs answer_column or solution_column; give one of them")
        return prompt.solution

    def _prompt(self, table: Table, row: int) -> Prompt:
        answer = None if self.answer_column is None else table.value(row, self.answer_column)
        solution = None if answer is None else fill(self.gold_format, {"answer": answer})
        if self.solution_column is not None:
            solution = str(table.value(row, self.solution_column))
        metadata = {name: table.rows[row].get(column) for name, column in self.metadata_columns.items()}
        return Prompt(self._messages(table, row), answer, metadata, solution)

    def _messages(self, table: Table, row: int) -> list[dict[str, str]]:
        if self.prompt_template is not None:
            values = {column: table.value(row, column) for column in fields(self.prompt_template)}
            return self.messages(fill(self.prompt_template, values))
        prompt = table.value(row, self.prompt_column)
        if isinstance(prompt, str):
            return self.messages(prompt)
        if not _is_chat(prompt):
            raise ConfigError(
                f"{_ARGS}.prompt_column: {table.where(row)} has neither a text nor a list of chat messages, "
                f"each with a text as role and content and the last not the assistant's, in column "
                f"{self.prompt_column!r}; choose another column or compose the prompt with prompt_template"
            )
        chat = [{"role": message["role"], "content": message["content"]} for message in prompt]
        if self.system_prompt and chat[0]["role"] != "system":
            return [{"role": "system", "content": self.system_prompt}, *chat]
        return chat

    def _require_columns(self, table: Table) -> None:
        if self.prompt_template is None:
            table.require(self.prompt_column, f"{_ARGS}.prompt_column")
        else:
            for column in sorted(fields(self.prompt_template)):
                table.require(column, f"{_ARGS}.prompt_template")
        if self.answer_column is not None:
            table.require(self.answer_column, f"{_ARGS}.answer_column")
        if self.solution_column is not None:
            table.require(self.solution_column, f"{_ARGS}.solution_column")
        for column in self.metadata_columns.values():
            table.require(column, f"{_ARGS}.metadata_columns")

    @cached_property
    def _source(self) -> Mapping[str, Any]:
        return open_splits(self.path, self.name)

    def _rows(self, split: Split) -> tuple[Table, Sequence[int]]:
        """The table that a split lives in, and its rows there."""
        if split == "test" or self._split_name("val") is not None:
            table = self._table(split)
            return table, range(len(table.rows))
        table = self._table("train")
        train, val = hold_out(len(table.rows), self.val_size, self.seed)
        return table, train if split == "train" else val

    def _table(self, split: Split) -> Table:
        name = self._split_name(split)
        if name is None:
            raise MissingSplit(
                f"{_ARGS}.path: {self.path} has no {split} split; it has: {', '.join(self._source)}; "
                f"add the split, or say which one serves with splits: {{{split}: ...}}"
            )
        table: Table = self._source[name]()
        return table

    def _split_name(self, split: Split) -> str | None:
        if split not in self.splits:
            return next((name for name in _USUAL_NAMES[split] if name in self._source), None)
        if self.splits[split] not in self._source:
            raise ConfigError(
                f"{_ARGS}.splits: {self.path} has no split {self.splits[split]!r} to serve as {split}; "
                f"it has: {', '.join(self._source)}"
            )
        return self.splits[split]


def hold_out(rows: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Part row numbers into those kept and ``size`` held out, each in ascending order, the same for every run."""
    if size >= rows:
        raise ConfigError(f"{_ARGS}.val_size: {size} leaves no row of {rows} to train on; lower it")
    generator = random.Random(seed)
    # Of `random` only random() is promised to give the same sequence in every version of Python.
    shuffled = sorted(range(rows), key=lambda _: generator.random())
    return sorted(shuffled[size:]), sorted(shuffled[:size])


_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def fields(template: str) -> set[str]:
    """The names a template asks for."""
    return {match[1] for match in _FIELD.finditer(template) if match[1]}


def checked_fields(template: str, key: str) -> set[str]:
    """The names that a template asks for, which is the option called ``key``.

    Raises:
        ConfigError: a brace is left over: what was meant as a column would be nothing but text.
    """
    # An empty pair, as in LaTeX's boxed{}, can only be meant as text.
    left_over = re.search(r"[{}]", _FIELD.sub("", template).replace("{}", ""))
    if left_over:
        brace = left_over[0]
        raise ConfigError(
            f"{key}: {template!r} has a single {brace!r}; close the braces around a column, or write {2 * brace!r} for "
            "the character itself"
        )
    return fields(template)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put values into a template in one pass: braces in a value are nothing but text.

    >>> fill("{{{set}}} and {n}", {"set": "{n}", "n": 1})
    '{{n}} and 1'
    """
    return _FIELD.sub(lambda match: _text(values[match[1]]) if match[1] else match[0][0], template)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


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
