"""Mistakes that other libraries notice: still one sentence with the key, and exit code 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.verifiers import FormatVerifier
from tests.cli.test_cli import ROOT, few, only_run, short_warm_start

QUICKSTART = ["--config", "configs/quickstart.yaml", "--warm_start", "null", "--model.policy.init", "random"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


class WithoutItsTable(FormatVerifier):
    def __init__(self) -> None:
        raise OSError("no such table")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "fit") -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([command, *map(str, arguments)])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: error: ")]
    return line.removeprefix("grpo: error: ")


def callback(name: str, **options: Any) -> list[str]:
    return ["--trainer.callbacks", json.dumps([{"class_path": name, "init_args": options}])]


def verifier(name: str, **options: Any) -> list[str]:
    return ["--model.verifiers", json.dumps([{"class_path": name, "init_args": options}])]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--trainer.logger", "WandbLogger"], "trainer.logger: WandbLogger cannot be built: Requirement 'wandb"),
        (
            ["--trainer.logger", "[{class_path: CSVLogger, init_args: {save_dir: .}}, {class_path: WandbLogger}]"],
            "trainer.logger: WandbLogger cannot be built: Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip",
        ),
        (
            ["--model.verifiers", "[{class_path: tests.cli.test_user_errors.WithoutItsTable}]"],
            "model.verifiers: WithoutItsTable cannot be built: OSError: no such table (test_user_errors.py line ",
        ),
        (verifier("MathVerifier", formats=[]), "MathVerifier.formats: must be a list of some of hash, boxed, tag, "),
        (verifier("MathVerifier", max_chars=0), "MathVerifier.max_chars: must be at least 1, not 0"),
        (verifier("CodeVerifier", timeout_s=0), "CodeVerifier.timeout_s: must be above 0 and at most 3600, not 0.0"),
        (verifier("CodeVerifier", workers=0), "CodeVerifier.workers: must be at least 1, or null for the default, "),
        (verifier("JSONSchemaVerifier", rel_tol=2), "JSONSchemaVerifier.rel_tol: must be at least 0 and below 1, "),
        (verifier("JSONSchemaVerifier", schema={"type": "x"}), "JSONSchemaVerifier.schema: the schema cannot be"),
        (verifier("JSONSchemaVerifier", fields=["a", "a"]), "JSONSchemaVerifier.fields: 'a' is named twice or empty"),
        (callback("EarlyStopping", monitor="x", mode="q"), "trainer.callbacks: EarlyStopping cannot be built: Misconf"),
        (["--trainer.strategy", "dpp"], "trainer: You selected an invalid strategy name: `strategy='dpp'`."),
        (["--trainer.devices", "many"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--seed_everything", "-1"], "seed_everything: must be from 0 to 4294967295, not -1"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval: must be above 0, not 0: to validate"),
        (
            callback("EarlyStopping", monitor="val_loss"),
            "trainer.callbacks: EarlyStopping.monitor: nothing is logged as val_loss: use one of `val/accuracy`",
        ),
        (
            ["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "50"],
            "trainer.val_check_interval: an epoch has fewer than 50 steps: set it to 1.0 to validate at the end of",
        ),
        (["--trainer.epochs", "2"], "trainer.epochs: there is no such key: set trainer.max_epochs or trainer.max_st"),
        (["--data.class_path", "X"], "data.class_path: there is no such key: the options of RolloutDataModule stand"),
        (["--trainer.max_step", "1"], "trainer.max_step: there is no such key (did you mean max_steps?)"),
    ],
)  # fmt: skip
def test_what_others_raise_is_one_sentence_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert error_of(capsys, *QUICKSTART, *few(tmp_path), *options).startswith(text)
    assert not list(tmp_path.rglob("checkpoints"))


def test_what_lightning_takes_in_yaml_is_taken_or_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "reward/mean", "mode": "max"}}
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": stop}}))
    trainer = parse([*QUICKSTART, "--config", str(config), *few(tmp_path)]).trainer
    assert "EarlyStopping" in [type(one).__name__ for one in trainer.callbacks]
    config.write_text("seed_everything: null")
    text = "seed_everything: null is not a seed: give a number, true for one at random, or false for none"
    assert error_of(capsys, *QUICKSTART, "--config", config, *few(tmp_path)) == text


@pytest.mark.parametrize("name", ["ReferenceSink", "CSVLoger", "MathVerifyer"])
def test_a_class_that_does_not_exist_is_said_without_the_parsers_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    key, meant = {
        "ReferenceSink": ("trainer.callbacks", "ReferenceSync"),
        "CSVLoger": ("trainer.logger", "CSVLogger"),
        "MathVerifyer": ("model.verifiers", "MathVerifier"),
    }[name]
    for value in (json.dumps([{"class_path": name}]), name)[: 1 if name == "MathVerifyer" else 2]:
        error = error_of(capsys, *QUICKSTART, *few(tmp_path), f"--{key}", value)
        assert error == f"{key}: Expected a dot import path string: {name} (did you mean {meant}?)"


def test_a_class_that_is_not_named_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((ROOT / "configs/quickstart_sft.yaml").read_text())
    file = tmp_path / "mine.yaml"
    model, task = config["model"], config["data"]["task"]
    modules, tasks = {"GRPOModule", "PPOModule", "SFTModule"}, {"Arithmetic", "GSM8K", "Tabular"}
    for key, value, where, names in (
        ("model", model["init_args"], "model", modules),
        ("model", {"init_args": model["init_args"]}, "model", modules),
        ("data", {"task": task["init_args"]}, "data.task", tasks),
        ("data", {"task": {"path": "p.jsonl"}}, "data.task", tasks),
    ):
        file.write_text(yaml.safe_dump(config | {key: value}))
        for command in ("fit", "check"):
            said, _, choice = error_of(capsys, "--config", file, command=command).partition(": give one of ")
            assert said == f"{where}.class_path"
            assert names <= set(choice.split(", "))  # and those that other tests define


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"seed_everything: 1 # caf\xe9\n", "is not UTF-8 text: invalid continuation byte at byte 24"),
        (bytes(range(256)), "is not UTF-8 text"),
        (b"model: \x07\n", "is not valid YAML: special characters are not allowed"),
        (b"model: [a\ndata: }\n", "is not valid YAML: expected ',' or ']', but got ':' in line 2, column 5"),
        (b"", "is empty: it must hold keys"),
        (b"- a\n", "holds a list: it must hold keys"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, text: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    for command, arguments in (("fit", ["--config", file]), ("check", [f"--config={file}"]), ("plan", ["-c", file])):
        assert error_of(capsys, *arguments, command=command).startswith(f"config: {file} {text}")


def test_a_mistake_in_the_config_of_the_warm_start_is_said_to_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = short_warm_start(tmp_path)
    sft = yaml.safe_load(file.read_text())
    for change, text in (
        ({"modle": 3}, "modle: there is no such key (did you mean model?)"),
        ({"trainer": sft["trainer"] | {"accelerator": "dpu"}}, "trainer: You selected an invalid accelerator name"),
    ):
        file.write_text(yaml.safe_dump(sft | change))
        error = error_of(capsys, "--config", "configs/quickstart.yaml", *few(tmp_path / "runs", warm_start=file))
        assert error.startswith(f"warm_start: in {file}: {text}")


def test_what_is_no_checkpoint_is_refused_before_a_run_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *QUICKSTART, *few(tmp_path / "runs")])
    run = only_run(tmp_path / "runs", "quickstart")
    rows, cut, weights = tmp_path / "p.jsonl", tmp_path / "cut.ckpt", next((run / "policy").glob("*.safetensors"))
    rows.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    whole = (run / "checkpoints/last.ckpt").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    archive = Path(shutil.make_archive(str(tmp_path / "other"), "zip", run / "policy"))
    for file in (rows, cut, weights, archive):
        for command in ("fit", "test"):
            error = error_of(capsys, *QUICKSTART, *few(tmp_path / "no"), "--ckpt_path", file, command=command)
            assert error == f"ckpt_path: {file} is not a grpo checkpoint, or it is truncated"
    assert not (tmp_path / "no").exists()
    # The newest of the config's own runs, which broke off as it was written.
    (run / "checkpoints/last.ckpt").write_bytes(cut.read_bytes())
    last = error_of(capsys, *QUICKSTART, *few(tmp_path / "runs"), "--ckpt_path", "last")
    assert last == f"ckpt_path: {run}/checkpoints/last.ckpt is not a grpo checkpoint, or it is truncated"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place, text in ((file, "File exists"), (file / "x", "Not a directory"), ("/proc/x", "No such file or direc")):
        error = error_of(capsys, *QUICKSTART, *few(tmp_path), "--run_dir", place)
        assert error.startswith(f"run_dir: {place} cannot be made: {text}")
    main(["fit", *QUICKSTART, *few(tmp_path), "--run_dir", str(tmp_path / "run")])
    for place in (file / "x", "/proc/x"):
        for command, refused in (("compare", "cannot create"), ("samples", "cannot ")):
            error = error_of(capsys, tmp_path / "run", "--out", place, command=command)
            assert error.startswith(f"--out: {refused}")
            assert str(place) in error


def test_without_checkpoints_none_is_written(tmp_path: Path) -> None:
    main(["fit", *QUICKSTART, *few(tmp_path, **{"trainer.enable_checkpointing": "false"})])
    run = only_run(tmp_path, "quickstart")
    assert (run / "policy").is_dir()
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("command", ["verify", "samples", "compare"])
def test_options_are_not_abbreviated(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    arguments = {"verify": ["--sample", "x"], "samples": ["--ste", ":", "run"], "compare": ["--titl", "x", "run"]}
    error = error_of(capsys, *arguments[command], command=command)
    assert error.startswith(f"{arguments[command][0]}: grpo {command} has no such option (did you mean --")


def test_help_says_where_the_options_of_a_class_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    commands = [line.split() for line in capsys.readouterr().out.splitlines() if ".help " in line]
    assert len(commands) == 4
    options = {"GRPOModule": "beta", "Tabular": "answer_column", "ReferenceSync": "alpha", "MathVerifier": "formats"}
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main(command[1:])
        assert f".{options.pop(command[-1])} " in capsys.readouterr().out
    assert " ".join(commands[-1]) in (ROOT / "docs/verifiers.md").read_text()
    with pytest.raises(SystemExit, match="0"):
        main(["verify", "--help"])
    assert "--samples FILE" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--model.policy.lora", "--model.init_args.policy.lora", "--model.policy.revision"])
def test_null_is_null_in_nested_options_too(option: str, gsm8k_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = ["--config", "configs/lfm_gsm8k.yaml", "--data.task.init_args.path", gsm8k_folder]
    template = "{prompt} --x=None"
    parsed = parse([*given, option, "null", "--data.task.prompt_template", template])
    assert parsed.config.model.init_args.policy[option.rpartition(".")[2]] is None
    assert parsed.config.data.task.init_args.prompt_template == template


def test_reward_functions_of_trl_say_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "trl.rewards", raising=False)
    verifier = json.dumps(
        [{"class_path": "FunctionVerifier", "init_args": {"function": "trl.rewards.accuracy_reward"}}]
    )
    error = error_of(capsys, *QUICKSTART, *few(tmp_path), "--model.verifiers", verifier)
    assert error.endswith(": pip install trl")
