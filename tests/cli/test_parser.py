"""What the parser reads differently from jsonargparse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.cli.parser import load_yaml
from grpo_lightning.cli.trainer_defaults import with_logger_options
from tests.cli.test_cli import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [("#### (.*)", "#### (.*)"), (" # a", " # a"), ("# a comment\nkey: 1", {"key": 1}), ("null", None), ("a", "a")],
)
def test_a_text_that_is_only_a_comment_is_itself(text: str, value: object) -> None:
    assert load_yaml(text) == value


SAVED = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("CSVLogger", SAVED), ({"class_path": "CSVLogger"}, SAVED), (["CSVLogger"], [SAVED]), (SAVED, SAVED),
        ("lightning.pytorch.loggers.CSVLogger", SAVED | {"class_path": "lightning.pytorch.loggers.CSVLogger"}),
        (
            {"class_path": "CSVLogger", "init_args": {"name": "a"}},
            {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "a"}},
        ),
        ("WandbLogger", "WandbLogger"), ("my.Logger", "my.Logger"), ("my.CSVLogger", "my.CSVLogger"),
        (None, None), (True, True),
    ],
)  # fmt: skip
def test_a_logger_that_is_only_named_writes_into_the_run(given: Any, completed: Any) -> None:
    assert load_yaml(json.dumps({"trainer": {"logger": given}}))["trainer"]["logger"] == completed


def test_so_does_one_on_the_command_line() -> None:
    saved = json.dumps(SAVED)
    for option in ("--trainer.logger", "--trainer.logger+"):
        assert with_logger_options(["fit", option, "CSVLogger", "-x"]) == ["fit", option, saved, "-x"]
        assert with_logger_options(["fit", f"{option}=CSVLogger"]) == ["fit", f"{option}={saved}"]
    for others in (["--trainer.logger", "[CSVLogger"], ["--trainer.logger"], ["--trainer.logger.name", "CSVLogger"]):
        assert with_logger_options(others) == others


def test_a_pattern_may_begin_with_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps({"completion": text}) + "\n" for text in ("#### 2", "2")))
    verifiers = json.dumps([{"class_path": "FormatVerifier", "init_args": {"pattern": "#### [0-9]+"}}])
    config = str(ROOT / "configs/quickstart.yaml")
    main(["verify", "--config", config, "--samples", str(samples), "--model.init_args.verifiers", verifiers])
    assert "FormatVerifier: 2 completions: 1 correct" in capsys.readouterr().out
