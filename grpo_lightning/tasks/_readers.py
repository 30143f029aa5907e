"""Rows of data files, one reader per format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error})") from error
            rows.append(_json_object(row, f"line {number}"))
    return rows


def _read_json(file: Path) -> list[dict[str, Any]]:
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("it is not an array of objects")
    return [_json_object(row, f"element {number}") for number, row in enumerate(rows, start=1)]


def _json_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object")
    return row


def _read_csv(file: Path) -> list[dict[str, Any]]:
    rows = []
    csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters, and a cell may hold a document
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError("the header names a column twice")
        for fields in filter(None, reader):
            if len(fields) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(fields)} fields, the header has {len(header)}")
            rows.append(dict(zip(header, fields, strict=True)))
    return rows


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


READERS: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The reader of each kind of file. It raises an OSError, ValueError or csv.Error that says what is wrong, and where."""
