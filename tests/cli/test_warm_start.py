"""The warm start: taken from an earlier run with the same one, and begun only if the run after it can start."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.finished_warm_starts import MADE_WITH, fingerprint, finished, take
from grpo_lightning.cli.grpo_cli import resolved
from grpo_lightning.cli.run_dirs import TAKEN_FROM
from tests.cli.test_cli import ROOT, few, short_warm_start
from tests.cli.test_user_errors import callback, error_of


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def runs(folder: Path) -> list[Path]:
    """The runs of quickstart.yaml, the oldest first."""
    found = folder.glob("runs/quickstart/*")
    return sorted(found, key=lambda run: run.stat().st_mtime_ns)


@pytest.mark.slow
def test_a_warm_start_is_trained_once_and_taken_by_the_next_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", "configs/quickstart.yaml", *few(tmp_path / "runs", warm_start=short_warm_start(tmp_path))]
    main(["fit", *base])
    (first,) = runs(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        main(["fit", *base, "--model.beta", "0.01"])  # another run, with the same warm start
    second = runs(tmp_path)[1]
    assert f"warm start: that of {first}, made with the same; --reuse_warm_start false" in caplog.text
    weights = [run / "warm_start/policy/model.safetensors" for run in (first, second)]
    assert os.path.samefile(*weights)
    assert (second / "warm_start" / TAKEN_FROM).read_text() == f"{first / 'warm_start'}\n"
    assert not (second / "warm_start/checkpoints").exists()
    saved = yaml.safe_load((second / "config.yaml").read_text())
    assert saved["model"]["init_args"]["policy"]["path"] == str(second / "warm_start/policy")

    # A refused start leaves nothing, and so not what it took.
    error_of(capsys, *base, *callback("EarlyStopping", monitor="val/x"))
    assert runs(tmp_path) == [first, second]

    main(["fit", *base, "--reuse_warm_start", "false"])
    third = runs(tmp_path)[2]
    assert (third / "warm_start/checkpoints/last.ckpt").is_file()


def config_of(file: Path, *options: str) -> str:
    return fingerprint(resolved(["fit", "--config", str(file), *options]))


@pytest.mark.slow
def test_what_a_warm_start_is_made_with_is_its_config_and_the_files_in_it(tmp_path: Path) -> None:
    file = short_warm_start(tmp_path)
    known = config_of(file)
    assert config_of(file, "--run_dir", str(tmp_path / "elsewhere")) == known
    assert config_of(file, "--seed_everything", "7") != known
    assert config_of(file, "--model.optimizer.init_args.lr", "1e-5") != known

    (tmp_path / "rows").mkdir()
    rows = tmp_path / "rows/train.jsonl"
    rows.write_text('{"prompt": "1 + 1", "solution": "2"}\n')
    task = yaml.safe_dump({"class_path": "Tabular", "init_args": {"path": str(tmp_path / "rows"), "val_size": 1}})
    before = config_of(file, "--data.task", task)
    assert config_of(file, "--data.task", task) == before
    rows.write_text('{"prompt": "1 + 2", "solution": "3"}\n')
    os.utime(rows, ns=(0, 0))
    assert config_of(file, "--data.task", task) != before


def test_a_module_of_ones_own_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_rewards.py"
    module.write_text("def short(sample): return 1.0\n")
    config = {"trainer": {}, "model": {"function": "my_rewards.short"}, "data": {}, "warm_start": None}
    known = fingerprint(config)
    module.write_text("def short(sample): return 0.25\n")
    assert fingerprint(config) != known


def test_only_finished_ones_with_the_same_fingerprint_are_found(tmp_path: Path) -> None:
    for name, made_with, is_whole in (
        ("old", "a", True),
        ("new", "a", True),
        ("part", "a", False),
        ("other", "b", True),
    ):
        warm = tmp_path / name / "warm_start"
        (warm / "policy").mkdir(parents=True) if is_whole else warm.mkdir(parents=True)
        (warm / MADE_WITH).write_text(made_with)
    os.utime(tmp_path / "old/warm_start" / MADE_WITH, ns=(0, 0))
    assert finished([tmp_path], "a") == tmp_path / "new/warm_start"
    assert finished([tmp_path], "c") is None


def test_it_is_copied_where_it_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a/warm_start"
    (source / "policy").mkdir(parents=True)
    (source / "policy/config.json").write_text("{}")
    (source / MADE_WITH).write_text("a")

    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    take(source, tmp_path / "b/warm_start")
    assert (tmp_path / "b/warm_start/policy/config.json").read_text() == "{}"
    assert finished([tmp_path], "a") is not None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data.task.init_args.max_value", "0"], "data.task.init_args.max_value"),
        (["--data.max_prompt_tokens", "1"], "data.max_prompt_tokens: all"),
        (["--trainer.strategy", "dpp"], "trainer: You selected"),
        (["--data.group_size", "1"], "data.group_size: an advantage relative to the group"),
        (["--model.policy.lora.r", "2"], "model.policy.lora: the warm start exports an adapter"),
    ],
)
def test_mistakes_in_the_run_are_found_before_its_warm_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    sft = short_warm_start(tmp_path)
    if "lora" in text:
        config = yaml.safe_load(sft.read_text())
        config["model"]["init_args"]["policy"] |= {"lora": {"r": 4}}
        sft.write_text(yaml.safe_dump(config))
    base = ["--config", "configs/quickstart.yaml", *few(tmp_path / "runs", warm_start=sft)]
    assert error_of(capsys, *base, *options).startswith(text)
    assert not (tmp_path / "runs").exists()
