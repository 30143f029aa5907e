"""The files of runs: the newest of a kind, JSONL, and files written whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.stored import newest, read_jsonl, whole_file


def test_the_newest_config_is_that_of_the_last_start(tmp_path: Path) -> None:
    assert newest(tmp_path, "config", ".yaml") == tmp_path / "config.yaml"
    for name in ("config.yaml", "config-2.yaml", "config-9.yaml", "config-10.yaml", "config-with-notes.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "config-11.json").touch()
    assert newest(tmp_path, "config", ".yaml") == tmp_path / "config-10.yaml"
    assert newest(tmp_path, "config", ".json") == tmp_path / "config-11.json"


def test_lines_of_json_are_numbered(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff1\n\n"a\u2028b"\n{"x": 3', encoding="utf-8")
    assert list(read_jsonl(file, drop_incomplete=True)) == [(1, 1), (3, "a\u2028b")]
    with pytest.raises(ConfigError, match=r"^line 4 of .*rows\.jsonl is not JSON"):
        list(read_jsonl(file))
    file.write_bytes("\xe4\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl is not UTF-8 text .*: convert it"):
        list(read_jsonl(file))


def test_a_file_that_was_not_written_to_its_end_does_not_replace_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"

    def write(text: str | None) -> None:
        with whole_file(file) as part:
            part.write_text("ha")
            part.write_text(text)  # type: ignore[arg-type]

    write("whole")
    with pytest.raises(TypeError):
        write(None)
    assert file.read_text() == "whole"
