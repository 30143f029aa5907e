"""The file of completions that a verifier is tried on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_lightning.commands.verify.report import read_samples
from grpo_lightning.errors import ConfigError


def test_a_string_may_hold_what_other_places_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u0085b", "a\u2029\x0bb", "a\nb"]
    file = tmp_path / "samples.jsonl"
    file.write_text(
        "\n".join(json.dumps({"completion": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    assert [sample.completion for sample in read_samples(file)] == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"completion": 4}', "has a completion that is no text: 4; put it in quotes"),
        ('{"completion": null}', "has a completion that is no text: None"),
        ('{"completion": "4", "metadata": [1]}', r"has metadata that is no JSON object: \[1\]"),
        ('{"completion": "4", "finish_reason": "tired"}', "is no JSON object with a completion .*'tired'"),
        ("[4]", "is no JSON object with a completion"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(f'{{"completion": "3"}}\n\n{line}\n')
    with pytest.raises(ConfigError, match=rf"--samples: line 3 of .*samples\.jsonl {reason}"):
        read_samples(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_bytes('{"completion": "Ä"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"--samples: .*samples\.jsonl is no text in UTF-8 .*: convert it"):
        read_samples(file)
