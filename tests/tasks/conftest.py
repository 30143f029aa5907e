from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Rows, WriteRows


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteRows:
    """Write rows to a JSONL file in the test's folder and return its path."""

    def write(name: str, rows: Rows) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write
