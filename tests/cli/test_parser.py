"""What the parser reads differently from jsonargparse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.cli.parser import load_yaml
from tests.cli.test_cli import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [("#### (.*)", "#### (.*)"), (" # a", " # a"), ("# a comment\nkey: 1", {"key": 1}), ("null", None), ("a", "a")],
)
def test_a_text_that_is_only_a_comment_is_itself(text: str, value: object) -> None:
    assert load_yaml(text) == value


def test_a_pattern_may_begin_with_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps({"completion": text}) + "\n" for text in ("#### 2", "2")))
    verifiers = json.dumps([{"class_path": "FormatVerifier", "init_args": {"pattern": "#### [0-9]+"}}])
    config = str(ROOT / "configs/quickstart.yaml")
    main(["verify", "--config", config, "--samples", str(samples), "--model.init_args.verifiers", verifiers])
    assert "FormatVerifier: 2 completions: 1 correct" in capsys.readouterr().out
