"""Load rows from local files or from a data set on the Hugging Face hub.

Local files are read as they are written. The `datasets` library would infer one type per column: the CSV answers `007`
and `1,234` would lose their spelling, and JSON objects with different keys (one schema per row, say) would be filled
with each other's keys.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grpo_lightning import hub
from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.tasks._readers import READERS

_KEY = "data.task.init_args.path"


@dataclass(frozen=True)
class Table:
    """The rows of one split, with the names that error messages need."""

    source: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    def require(self, column: str, key: str) -> None:
        """Raise a ConfigError about the option ``key`` unless the column exists."""
        if column not in self.columns:
            raise ConfigError(f"{key}: the data set has no column {column!r}; it has: {', '.join(self.columns)}")

    def require_filters(self, filters: Iterable[str]) -> None:
        """Raise a ConfigError unless the columns of the filters exist."""
        for column in filters:
            self.require(column, "data.task.init_args.filters")

    def value(self, row: int, column: str) -> Any:
        """Return the value of a cell that must not be empty."""
        value = self.rows[row].get(column)
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise ConfigError(f"{self.where(row)} has no value in column {column!r}; fill it in or remove the row")
        return value

    def filtered(self, filters: Mapping[str, Any]) -> Table:
        """The rows whose columns have the given values.

        Raises:
            ConfigError: a column does not exist, or no row is left.
        """
        if not filters:
            return self
        self.require_filters(filters)
        kept = [number for number, row in enumerate(self.rows) if matches(row, filters)]
        if not kept:
            raise ConfigError(
                f"data.task.init_args.filters: no row of {self.source} has {dict(filters)}: check the values"
            )
        select = getattr(self.rows, "select", None)
        rows = [self.rows[number] for number in kept] if select is None else select(kept)
        return Table(f"the filtered rows of {self.source}", self.columns, rows)

    def where(self, row: int) -> str:
        """Name a row in an error message, counted from 1."""
        return f"row {row + 1} of {self.source}"


def matches(row: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether each column has its value, or one of a list. Text, such as all of a CSV file, may spell another type."""
    for column, wanted in filters.items():
        cell = row.get(column)
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if cell not in values and not (isinstance(cell, str) and any(_spells(cell, value) for value in values)):
            return False
    return True


def _spells(cell: str, value: Any) -> bool:
    return cell.lower() == str(value).lower() if isinstance(value, bool) else cell == str(value)


class Row(Mapping[str, Any]):
    """All columns of a row. They are read on access, so a data set of the hub does not fill the memory."""

    def __init__(self, table: Table, number: int) -> None:
        self._table = table
        self._number = number

    def __getitem__(self, column: str) -> Any:
        if column not in self._table.columns:
            raise KeyError(column)
        return self._table.rows[self._number].get(column)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.columns)

    def __len__(self) -> int:
        return len(self._table.columns)


def open_splits(path: str, name: str | None) -> Mapping[str, Callable[[], Table]]:
    """Find the splits at a path. Each value is a function that loads one split.

    Args:
        path: a file, a folder with one file (or numbered shards) per split or written by ``save_to_disk``, or the name
            of a data set on the hub.
        name: the data set's config on the hub; in a local folder, the subfolder of that name if it exists.

    Raises:
        ConfigError: the file, folder or data set does not exist, or it contains no data file.
    """
    local = Path(path).expanduser()
    if _holds(local, "state.json", "dataset_info.json") or _holds(local, "dataset_dict.json"):
        return _open_saved(local)
    if local.is_file():
        if local.suffix not in READERS:
            raise ConfigError(f"{_KEY}: {path} is not one of {', '.join(READERS)}; convert it to one of these")
        return {"train": partial(_read, [local])}
    if local.is_dir():
        return _open_folder(local, name)
    if path.startswith((".", "/", "~")) or local.suffix in READERS:
        raise ConfigError(
            f"{_KEY}: the file or folder {path} does not exist; give one that does, or a data set's name on the hub"
        )
    return open_hub(path, name)


def _holds(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def given_splits(
    data: Any, most_rows: int | None, filters: Mapping[str, Any] = MappingProxyType({})
) -> Mapping[str, Callable[[], Table]]:
    """Return the splits of data that a program passes: rows, which are the train split, or rows by split name.

    Args:
        data: a list of dicts, a ``datasets.Dataset`` or a stream of such rows; or a mapping of these, as a
            ``DatasetDict`` is.
        most_rows: number of rows to keep of a stream, whose length is unknown; ``None`` refuses streams.
        filters: rows of a stream without these values do not count.
    """
    splits = data if isinstance(data, Mapping) else {"train": data}
    return {
        name: partial(_given, f"the given {name} split", _ended(f"the given {name} split", rows, most_rows, filters))
        for name, rows in splits.items()
    }


def _ended(source: str, rows: Any, most_rows: int | None, filters: Mapping[str, Any]) -> Any:
    """Return the rows; of a stream, the first ones that match the filters."""
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise ConfigError(f"{_KEY}: {source} is of type {type(rows).__name__}; give a list of dicts, or a Dataset")
    rows = _plain(rows)
    if hasattr(rows, "__len__"):
        return rows
    if most_rows is None:
        raise ConfigError(
            "data.task.init_args.limit: the length of a stream is unknown; set how many of its rows to read"
        )
    return list(islice(_matching(source, rows, filters), most_rows))


def _matching(source: str, rows: Iterable[Any], filters: Mapping[str, Any]) -> Iterator[Any]:
    """The rows of a stream that match the filters. With a misspelled column, it would be read without end."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            yield row  # an error says so
            continue
        if number == 0:
            Table(source, list(row), ()).require_filters(filters)
        if matches(row, filters):
            yield row


def _plain(rows: Any) -> Any:
    """Rows of a Dataset with Python's own values, where it is set to give tensors or arrays."""
    is_transformed = getattr(rows, "format", {}).get("type") == "custom"  # by a function of the user's
    return rows.with_format(None) if hasattr(rows, "with_format") and not is_transformed else rows


def _given(source: str, rows: Any) -> Table:
    columns = getattr(rows, "column_names", None)
    if columns is None:
        rows = list(rows)
    # All rows of a Dataset are alike, and expensive to look at.
    for number, row in enumerate(rows if columns is None else [rows[0]] if len(rows) else [], start=1):
        if not isinstance(row, Mapping):
            raise ConfigError(
                f"{_KEY}: row {number} of {source} is of type {type(row).__name__}, not a dict of columns; give a list "
                "of dicts (of a pandas DataFrame: to_dict('records')), or a Dataset"
            )
    if columns is None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
    return _table(source, columns, rows)


def _open_saved(folder: Path) -> Mapping[str, Callable[[], Table]]:
    """Find the splits of what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return _tables(saved if isinstance(saved, Mapping) else {"train": saved}, str(folder))


def _tables(splits: Mapping[Any, Any], path: str) -> Mapping[str, Callable[[], Table]]:
    return {
        str(split): partial(_table, f"{path}, split {split}", rows.column_names, _plain(rows))
        for split, rows in splits.items()
    }


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{_KEY}: cannot read {path}: {error}; repair or replace the file")


def _open_folder(folder: Path, name: str | None) -> Mapping[str, Callable[[], Table]]:
    candidates = [folder / name, folder] if name else [folder]
    # Most repositories on the hub keep their files in `data/`.
    for directory in (path for candidate in candidates for path in (candidate, candidate / "data")):
        files = [file for file in sorted(directory.glob("*")) if file.suffix in READERS]
        if files:
            splits: dict[str, list[Path]] = {}
            for file in files:
                splits.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
            return {split: partial(_read, shards) for split, shards in splits.items()}
    place = folder if folder.is_absolute() else f"{folder} of {Path.cwd()}"
    raise ConfigError(
        f"{_KEY}: the folder {place} contains no data file; put train.jsonl and test.jsonl "
        f"(or {', '.join(READERS)}) there"
    )


def _read(files: Sequence[Path]) -> Table:
    if len({file.suffix for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{_KEY}: {names} in {files[0].parent} are the same split; keep one of them")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows.extend(READERS[file.suffix](file))
        except (OSError, ValueError, csv.Error) as error:
            raise _unreadable(file, error) from error
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more shards"
    return _table(source, list(dict.fromkeys(column for row in rows for column in row)), rows)


def _table(source: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    if not len(rows):
        raise ConfigError(f"{_KEY}: {source} has no rows; add rows or give another path")
    return Table(source, columns, rows)


def open_hub(path: str, name: str | None) -> Mapping[str, Callable[[], Table]]:
    """Find the splits of a data set on the hub. :func:`open_splits` calls this if the path is not local."""
    import datasets

    try:
        with hub.from_hub(path):
            splits = datasets.load_dataset(path, name)
    except Exception as error:  # offline, no such data set, no such config, gated: the fix is the same for all
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(
            f"{_KEY}: {hub.why_not(path, reason)}; check the name, or give a local folder that contains train.jsonl"
        ) from error
    return _tables(splits, path)
