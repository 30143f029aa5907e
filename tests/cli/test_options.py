"""What is said without loading torch is what the parser would say, and is said without loading torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.config_files import read_config_files
from grpo_lightning.cli.grpo_cli import run
from grpo_lightning.cli.known_keys import check_keys, must_be
from grpo_lightning.cli.option_table import FILE, Option, option_table
from grpo_lightning.cli.write_options import options_json
from grpo_lightning.errors import ConfigError
from tests.cli.test_cli import ROOT
from tests.cli.test_user_errors import QUICKSTART, error_of


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_table_is_that_of_the_parser() -> None:
    """A new option is a decision: it changes this file. python -m grpo_lightning.cli.write_options writes it."""
    assert FILE.read_text() == options_json()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model.bta", "1"], "model.bta: there is no such key (did you mean beta?)"),
        (["--data.task.max_valu", "1"], "data.task.max_valu: there is no such key (did you mean max_value?)"),
        (["--model.policy.pth", "x"], "model.policy.pth: there is no such key (did you mean path?)"),
        (["--data.group_size", "eight"], "data.group_size: must be a whole number, not eight"),
        (["--data.overlong", "cut"], "data.overlong: must be one of drop, truncate-left, not cut"),
        (["--modle", "1"], "modle: there is no such key (did you mean model?)"),
        (["--group_size", "8"], "group_size: there is no such key (did you mean data.group_size?)"),
        (["--data.beta", "1"], "data.beta: there is no such key (did you mean model.beta?)"),
    ],
)
def test_the_parser_says_the_same(capsys: pytest.CaptureFixture[str], options: list[str], text: str) -> None:
    assert error_of(capsys, *QUICKSTART, *options) == text
    with pytest.raises(ConfigError) as error:
        run(["fit", *QUICKSTART, *options])
    # The parser may know a nearer name, that of another class; what is wrong it says alike.
    assert str(error.value).partition(" (")[0] == text.partition(" (")[0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"data": {"group_sise": 3}}, "data.group_sise: there is no such key (did you mean group_size?)"),
        (
            {"model": {"class_path": "GRPOModule", "init_args": {"verifiers": [{"class_path": "MathVerifier",
             "init_args": {"fomats": 3}}]}}},
            "model.verifiers.fomats: there is no such key (did you mean formats?)",
        ),
        ({"model": {"init_args": {"policy": {"lora": {"rank": 1}}}}}, "model.policy.lora.rank: there is no such key"),
    ],
)  # fmt: skip
def test_of_a_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    assert error_of(capsys, *QUICKSTART, "--config", file) == text
    with pytest.raises(ConfigError) as error:
        run(["fit", *QUICKSTART, "--config", str(file)])
    assert str(error.value).startswith(text.partition(" (")[0])


def test_all_mistakes_are_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, *QUICKSTART, "--model.bta", "1", "--data.group_size", "eight")
    assert error == (
        "model.bta: there is no such key (did you mean beta?); data.group_size: must be a whole number, not eight"
    )


@pytest.mark.parametrize("file", sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/*.yaml")]), ids=str)
def test_what_is_right_passes(file: Path) -> None:
    check_keys(read_config_files(["fit", "--config", str(file)]), [], "fit")


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "mine.Module", "--model.my_option", "1"],  # which only the parser can know
        ["--model.verifiers", "[{class_path: mine.MathVerifier, init_args: {mine: 1}}]"],
        ["--model.verifiers+", "{class_path: MathVerifier, init_args: {formats: [boxed]}}"],
        ["--trainer.an_option_of_a_newer_lightning", "1"],
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum", "0.9"],
        ["--model.policy.lora", "{r: 4}", "--model.policy.lora.alpha", "8"],
        ["--model.policy.lora.r=4", "--data.sampling", "{temperature: 1e-1, stop: [a]}"],
        ["--model.lr_scheduler", "{class_path: torch.optim.lr_scheduler.ConstantLR}"],
        ["--model.objective", "GSPO", "--model.objective.epsilon", "3e-4"],
        ["--model.objective", "{class_path: CISPO, init_args: {epsilon_high: 3}}", "--model.advantage", "group"],
        ["--data.pass_at_k", "[1, 2]", "--checkpoint", "{monitor: null}", "--ckpt_path=last"],
        ["--print_config", "--data.max_prompt_tokens", "null", "--export.merged", "yes"],
        ["--model.optimizer.an_option_of_a_newer_torch", "1"],
        ["--trainer.callbacks+", "{class_path: ReferenceSync, init_args: {alpha: 1}}"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(options: list[str]) -> None:
    check_keys(read_config_files(QUICKSTART), options, "fit")


def test_a_class_of_another_package_keeps_its_options() -> None:
    first = {"model": {"class_path": "mine.Module", "init_args": {"mine": 1}}}
    check_keys([first, {"model": {"init_args": {"other": 1}}}], [], "fit")
    with pytest.raises(ConfigError, match=r"model\.other"):
        check_keys([first, {"model": {"class_path": "PPOModule", "init_args": {"other": 1}}}], [], "fit")


@pytest.mark.parametrize(
    ("kind", "value", "is_right"),
    [("int", "8", True), ("int", 8.5, True), ("int | null", "x", False), ("float", "1e-5", True), ("bool", "off", True),
     ("float", "many", False), ("bool", "maybe", False), ("int | str", "x", True), ("list of int", "x", True)],
)  # fmt: skip
def test_only_values_that_cannot_be_read_are_refused(kind: str, value: Any, is_right: bool) -> None:
    assert (must_be(Option(kind), value) is None) == is_right


COMMANDS = [
    ["--help"], ["fit", "--help"], ["check", "--help"], ["fit", "--model.help"], ["fit", "--model.help", "PPOModule"],
    ["fit", "--data.task.help=Tabular"], ["fit", "--trainer.callbacks.help", "ReferenceSync"],
    ["fit", "--model", "GRPOModule", "--model.verifiers.help", "MathVerifier"], ["fit", "--data.refinement.help"],
    ["fit", "none.yaml"], ["fit", "configs/quickstart.yaml", "--model.bta", "1"], ["completion", "bash"],
    ["plan", "--help"], ["serve", "--help"], ["samples", "--help"], ["compare", "--help"], ["verify", "--help"],
    ["samples", "none"],
]  # fmt: skip


def test_it_is_said_without_loading_torch() -> None:
    code = (
        f"import sys; from grpo_lightning.__main__ import main\nfor arguments in {COMMANDS!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def answer_to(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    return capsys.readouterr().out.splitlines()


def test_help_begins_with_our_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer_to(capsys, "fit", "--help")
    keys = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    table = option_table()
    assert {*table.keys, *table.subcommands["fit"]} <= set(keys)
    first_of_lightning = next(index for index, key in enumerate(keys) if key.startswith("trainer."))
    assert {key.partition(".")[0] for key in keys[first_of_lightning:]} == {"trainer"}
    assert len(lines) < 600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.task.help"], {"Tabular", "GSM8K"}),
        (["--model.verifiers.help"], {"MathVerifier", "WeightedVerifier"}),
        (["--model.objective.help"], {"GSPO", "Clip"}),
        (["--data.engine.help"], {"--data.engine.urls"}),
        (["--data.refinement.help"], {"--data.refinement.mode", "--data.refinement.budget"}),
        (["--model.policy.lora.help"], {"--model.policy.lora.r"}),
        (["--data.task.help", "Tabular"], {"--data.task.path", "--data.task.answer_column"}),
    ],
)
def test_help_of_a_key(capsys: pytest.CaptureFixture[str], arguments: list[str], words: set[str]) -> None:
    lines = answer_to(capsys, "fit", *arguments)
    assert words <= {line.split()[0] for line in lines if line.strip()}


def test_a_class_that_is_not_in_the_table_is_the_parsers_to_explain(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--trainer.callbacks.help", "EarlyStopping"])
    assert "--trainer.callbacks.patience" in capsys.readouterr().out


def completions(script: Path, *words: str) -> Iterator[str]:
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_grpo; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shell = ["bash", "-c", code, "bash", str(script), *words]
    yield from subprocess.run(shell, check=True, capture_output=True, text=True).stdout.split()


def test_the_shell_completes_subcommands_keys_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = tmp_path / "grpo"
    script.write_text(capsys.readouterr().out)
    assert {"fit", "samples", "completion"} <= set(completions(script, "grpo", ""))
    assert set(completions(script, "grpo", "fit", "--data.gr")) == {"--data.group_size"}
    assert set(completions(script, "grpo", "fit", "--model.aggregation", "d")) == {"dr_grpo", "dapo"}
    assert "Tabular" in completions(script, "grpo", "fit", "--data.task", "")
    for arguments in (["completion"], ["completion", "fish"]):
        assert error_of(capsys, *arguments[1:], command="completion").startswith("completion: name one of bash, zsh")


@pytest.mark.parametrize("command", ["fit --help", "configs", "--help"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    pipe = f"set -o pipefail; {sys.executable} -m grpo_lightning {command} | true"
    done = subprocess.run(["bash", "-c", pipe], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
