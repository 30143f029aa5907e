"""``grpo reproduce``: the same run gives the same rollouts, and what differs is said."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from grpo_lightning.__main__ import main
from grpo_lightning.cli.checkpoints import named_checkpoint
from grpo_lightning.cli.confidential import remove_secrets
from grpo_lightning.cli.environment import commit_of, software
from grpo_lightning.commands.reproduce.command import compared, differences
from grpo_lightning.errors import RunError
from tests.cli.test_cli import ROOT, few, only_run
from tests.cli.test_user_errors import error_of
from tests.commands.test_samples import row, write


class Service(CSVLogger):
    """A logger that needs a key."""

    given = ""

    def __init__(self, save_dir: str, api_key: str) -> None:
        super().__init__(save_dir, "", "")
        Service.given = api_key


def test_a_run_is_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    options = few(tmp_path / "runs", **{"warm_start": "null", "model.policy.init": "random"})
    main(["fit", "--config", "configs/quickstart.yaml", *options])
    run = only_run(tmp_path / "runs", "quickstart")
    capsys.readouterr()
    card = (run / "policy/README.md").read_text()
    assert re.search(r"validation accuracy after training \| 0\.\d+ \(95 % interval .*after 2 optimizer steps", card)
    assert str(tmp_path) not in card
    assert str(ROOT) not in card
    main(["reproduce", str(run), "--trainer.max_steps", "1"])
    out = capsys.readouterr().out
    assert "same commit, versions and platform as the run" in out or "uncommitted changes" in out
    assert out.endswith("reproduced: 4 rollouts of 1 step are the same, text and reward\n")
    with monkeypatch.context() as second, suppress(SystemExit):
        second.setenv("LOCAL_RANK", "1")
        main(["reproduce", str(run), "--check"])
    assert not capsys.readouterr().out, "the first process says it all"
    copy = only_run(run, "reproduced")
    assert (copy / "checkpoints/last.ckpt").is_file()
    # The copy is not the newest run of the config.
    assert named_checkpoint("last", tmp_path / "runs", "quickstart") == str(run / "checkpoints/last.ckpt")
    monkeypatch.chdir(tmp_path)
    assert f"the run began in {ROOT}" in error_of(capsys, run, command="reproduce")


def test_what_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    record = tmp_path / "environment.json"
    now = software()
    record.write_text(json.dumps(now | {"commits": dict.fromkeys(now["commits"])}))
    now_commits = [commit for commit in now["commits"].values() if commit]
    if now_commits:
        with pytest.raises(SystemExit, match="1"):
            main(["reproduce", str(tmp_path), "--check"])
        assert f"commits: grpo-lightning: unknown then, {now_commits[0]} now" in capsys.readouterr().out
    versions = now["versions"] | {"torch": "1.0"}
    record.write_text(json.dumps({"versions": versions, "platform": now["platform"]}))
    with pytest.raises(SystemExit, match="1"):
        main(["reproduce", str(tmp_path), "--check"])
    printed = capsys.readouterr()
    assert f"versions: torch: 1.0 then, {now['versions']['torch']} now" in printed.out
    assert "commits: the run did not record them" in printed.out
    assert "2 of the things that" in printed.err


def test_uncommitted_changes_are_a_difference() -> None:
    changed = {"commits": {"a": "12 with changes 34"}}
    assert list(differences(changed, changed)) == [
        "commits: a: the run had uncommitted changes, as there are now; new files are not compared"
    ]
    assert list(differences({"commits": {"a": "12"}}, {"commits": {"a": "12"}})) == []


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=x", "-c", "user.email=x@x"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True, text=True
        ).stdout

    assert commit_of(tmp_path) is None
    git("init", "-q")
    file = tmp_path / "verifier.py"
    file.write_text("a\n")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert commit_of(tmp_path) == commit_of(file) == commit
    file.write_text("b\n")
    first = commit_of(tmp_path)
    assert first is not None
    assert first.startswith(f"{commit} with changes ")
    file.write_text("c\n")
    assert commit_of(tmp_path) not in (None, first, commit)
    untracked = tmp_path / "site.py"
    untracked.write_text("")
    assert commit_of(untracked) is None


def test_rollouts_are_compared_where_both_have_them(tmp_path: Path) -> None:
    old = write(tmp_path / "old", *(row(step, member=n) for step in (0, 1, 2) for n in (0, 1)))
    new = write(tmp_path / "new", *(row(step, member=n) for step in (0, 1) for n in (0, 1)))
    assert compared(old, new) == "reproduced: 4 rollouts of 2 steps are the same, text and reward"
    for changes in ({"completion": "other"}, {"reward": 1.0}):
        other = write(tmp_path / str(changes), row(0), row(1, **changes), row(2, **changes))
        with pytest.raises(RunError, match="differ from step 1 on, first train/1/0/0"):
            compared(old, other)
    with pytest.raises(RunError, match="no rollouts of the same steps"):
        compared(old, write(tmp_path / "later", row(9)))


def test_records_with_other_or_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = {"versions": {"oldpkg": "1", "torch": "2"}, "device": "cpu"}
    assert list(differences(then, {"versions": {"torch": "2", "new": "3"}})) == [
        "versions: oldpkg: 1 then, unknown now", "device: cpu then, unknown now"
    ]  # fmt: skip
    (tmp_path / "config.yaml").write_text("{}")
    for text, said in (("{", "is not valid JSON"), ("[1]", "must hold a JSON object, not [1]")):
        (tmp_path / "environment.json").write_text(text)
        assert said in error_of(capsys, tmp_path, "--check", command="reproduce")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run, which has config.yaml" in error_of(capsys, tmp_path, command="reproduce")
    assert error_of(capsys, command="reproduce").startswith("RUN_DIR: give the directory of a run")


# -- a config without secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("api_key", True), ("token", True), ("hf_token", True), ("WANDB_API_KEY", True), ("db_password", True),
        ("client_secret", True), ("key", False), ("pad_token", False), ("max_tokens", False), ("monkey", False),
        ("answer_column", False),
    ],
)  # fmt: skip
def test_secrets_of_a_config_are_null(name: str, is_secret: bool) -> None:
    config: Any = {"logger": [{"init_args": {name: "abc"}}]}
    assert remove_secrets(config) == ([f"logger.0.init_args.{name}"] if is_secret else [])
    assert config["logger"][0]["init_args"][name] == (None if is_secret else "abc")


def test_passwords_in_addresses_are_dropped() -> None:
    config = {"engine": {"urls": ["http://me:pass@host:8000", "http://host"], "n": 3}}
    assert remove_secrets(config) == ["engine.urls.0"]
    assert config == {"engine": {"urls": ["http://host:8000", "http://host"], "n": 3}}


def test_the_config_of_a_run_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = few(tmp_path, **{"warm_start": "null", "model.policy.init": "random", "trainer.max_steps": 1})
    logger = "{class_path: tests.commands.test_reproduce.Service, init_args: {save_dir: ., api_key: abc123}}"
    main(["fit", "--config", "configs/quickstart.yaml", *options, "--trainer.logger", logger])
    run = only_run(tmp_path, "quickstart")
    assert all("abc123" not in file.read_text() for file in (run / "config.yaml", run / "environment.json"))
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
    assert saved["init_args"]["api_key"] is None
    assert importlib.import_module("tests.commands.test_reproduce").Service.given == "abc123"
