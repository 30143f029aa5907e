"""What a user types first and gets wrong: each is taken, or answered with the key and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from tests.cli.test_cli import ROOT, few, only_run
from tests.cli.test_user_errors import QUICKSTART, callback, error_of

LR = "set model.optimizer.init_args.lr, with model.optimizer.class_path such as torch.optim.AdamW"

NO_DEVICE = "trainer.accelerator: this machine has no such device: set it to auto or cpu"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model.lr", "1e-5"], f"model.lr: there is no such key: {LR}"),
        (["--lr", "1e-5"], f"lr: there is no such key: {LR}"),
        (
            ["--optimizer", "AdamW"],
            "optimizer: there is no such key: set model.optimizer, as in --model.optimizer torch.optim.AdamW "
            "--model.optimizer.lr 1e-5",
        ),
        (["--model_name_or_path", "x"], "model_name_or_path: there is no such key: set model.init_args.policy.path"),
        (callback("ReferenceSync", lr=1), "trainer.callbacks.lr: there is no such key"),
        (
            ["--model.policy.lora", "true"],
            "model.policy.lora: give its options, such as {r: 16, alpha: 32}, or omit it",
        ),
        (["--model.policy.lora", "{r: many}"], "model.policy.lora.r: must be a whole number, not many"),
        (
            ["--model.policy.lora", "{target_modules: 3}"],
            "model.policy.lora.target_modules: must be text or a list, such as [a, b], not 3",
        ),
        (["--data.refinement", "true"], "data.refinement: give its options, such as {mode: distill}, or omit it"),
        (["--data.sampling", "3"], "data.sampling: must be keys with values, not 3"),
        (
            ["--data.task", "Tabular", "--data.task.path", "x", "--data.task.metadata_columns", "schema"],
            "data.task.metadata_columns: must be a list, such as [a, b] or keys with values, not schema",
        ),
        (
            ["--data.task", "Tabular", "--data.task.path", "[a.jsonl, b.jsonl]"],
            "data.task.path: must be text or keys with values, not ['a.jsonl', 'b.jsonl']",
        ),
        (
            ["--model.verifiers", "json.loads"],
            "model.verifiers: json.loads is not a subclass of Verifier: if it is a function, write {class_path: "
            "FunctionVerifier, init_args: {function: json.loads}}",
        ),
        (["--model.verifiers", "json.nothing"], "model.verifiers: module 'json' has no attribute 'nothing'"),
        (["--model.verifiers", "[no.thing]"], "model.verifiers: No module named 'no'"),
        (
            ["--trainer.callbacks", "EarlyStopping"],
            "trainer.callbacks: EarlyStopping needs monitor: write {class_path: EarlyStopping, init_args: "
            "{monitor: ...}}",
        ),
        (
            ["--model.advantage", "grpo"],
            "model.advantage: must be one of group, none-scaled, batch-std, leave_one_out, or a class by its class_path"
            ", not grpo",
        ),
        (["--data.group_size", "eight"], "data.group_size: must be a whole number, not eight"),
        (["--data.pass_samples", "many"], "data.pass_samples: must be a whole number, not many"),
        (["--export.merged", "perhaps"], "export.merged: must be true or false, not perhaps"),
        (["--trainer.accelerator", "cuda"], NO_DEVICE),
        (["--trainer.accelerator", "gpu"], NO_DEVICE),
        (
            ["--trainer.callbacks", "[{class_path: ReferenceSync, alpha: 0.5}]"],
            "trainer.callbacks: put the options of a class under init_args, as in {class_path: NAME, init_args: "
            "{OPTION: VALUE}}",
        ),
        (
            ["--trainer.devices", "9", "--trainer.strategy", "ddp"],
            "data.prompts_per_step: a step has 2 prompts, fewer than the 9 devices that share them: set it to at least "
            "9",
        ),
        (
            callback("StochasticWeightAveraging", swa_lrs=0.1),
            "trainer.callbacks: StochasticWeightAveraging averages a copy of the whole module and swaps the weights "
            "that rollouts are drawn from: omit it, and use checkpoint.monitor or export.best to keep the best policy",
        ),
    ],
)  # fmt: skip
def test_the_answer_names_the_key_and_the_fix_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    if options[-1] in ("cuda", "gpu"):
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has the device")
    assert error_of(capsys, *QUICKSTART, *few(tmp_path), *options) == text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("model: {init_args: {lr: 1}}", f"model.lr: there is no such key: {LR}"),
        ("learning_rate: 1", f"learning_rate: there is no such key: {LR}"),
        ("model_name_or_path: x", "model_name_or_path: there is no such key: set model.init_args.policy.path"),
        ("modle: 3", "modle: there is no such key (did you mean model?)"),
        (
            "model: {class_path: GRPOModule, policy: {path: x}, verifiers: []}",
            "model: put policy and verifiers of GRPOModule under init_args, beside class_path (in FILE)",
        ),
        (
            "data: {task: {class_path: Tabular, path: x}}",
            "data.task: put path of Tabular under init_args, beside class_path (in FILE)",
        ),
        (
            "model: {init_args: {verifiers: [{class_path: a.MathVerifier, formats: [boxed]}]}}",
            "model.verifiers: put formats of MathVerifier under init_args, beside class_path (in FILE)",
        ),
        (
            "model: {init_args: {policy: {path: x, lora: true}}}",
            "model.policy.lora: give its options, such as {r: ",
        ),
    ],
)
def test_mistakes_in_a_file_are_answered_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, text: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    error = error_of(capsys, *QUICKSTART, "--config", file, *few(tmp_path / "runs"))
    assert error.startswith(text.replace("FILE", str(file)))
    assert not (tmp_path / "runs").exists()


def test_one_verifier_and_one_k_are_taken_as_lists(tmp_path: Path) -> None:
    options = ["--model.verifiers", "MathVerifier", "--data.pass_at_k", "2"]
    main(["fit", *QUICKSTART, *few(tmp_path), *options])
    run = only_run(tmp_path, "quickstart")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["verifiers"]["class_path"].endswith("MathVerifier")
    assert saved["data"]["pass_at_k"] == 2
    main(["fit", "--config", str(run / "config.yaml"), "--trainer.max_steps", "3", "--ckpt_path", "last"])
    assert (run / "config-2.yaml").is_file()


def test_a_config_needs_no_option(tmp_path: Path) -> None:
    main(["fit", "configs/quickstart.yaml", *QUICKSTART[2:], *few(tmp_path)])
    assert (only_run(tmp_path, "quickstart") / "checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict", "check", "plan"])
def test_a_subcommand_alone_asks_for_a_config(capsys: pytest.CaptureFixture[str], subcommand: str) -> None:
    text = f"config: none is given: write grpo {subcommand} --config FILE.yaml, or the name of a shipped config, "
    text += "such as quickstart"
    assert error_of(capsys, command=subcommand) == text
    assert error_of(capsys, "--seed_everything", "1", command=subcommand) == text


def test_a_word_that_is_no_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "config: there is no file {}{}: grpo configs lists those that are shipped"
    meant = " (did you mean quickstart?)"
    assert error_of(capsys, "quikstart") == missing.format("quikstart", meant)
    assert error_of(capsys, "--config", "quikstart.yaml", command="check") == missing.format("quikstart.yaml", meant)
    assert error_of(capsys, "zzz", "--ckpt_path", "last", command="plan") == missing.format("zzz", "")
    (tmp_path / "config.yaml").touch()
    own = f"config: {tmp_path} is the folder of a run: give its own config, {tmp_path}/config.yaml"
    assert error_of(capsys, tmp_path, "--ckpt_path", "last", command="test") == own
    assert error_of(capsys, "--config", tmp_path) == own


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grpo_lightning.commands.configs.command.main", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["configs"])
    assert capsys.readouterr().err == "grpo: interrupted\n"


def test_a_reader_that_has_ended_is_no_error() -> None:
    # Unbuffered output breaks in print, and leaves nothing to flush.
    for options, name in (([], "configs"), (["-u"], "configs"), ([], "--help")):
        command = [sys.executable, *options, "-m", "grpo_lightning", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""


def test_what_a_config_file_lacks_is_said_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: {class_path: GRPOModule, policy: {}}")
    code = (
        "import sys; from grpo_lightning.__main__ import main\n"
        "for arguments in (['fit'], ['fit', 'bad.yaml'], ['plan', '--config', 'bad.yaml']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("option", "name"),
    [("--model.help", "PPOModule"), ("--data.task.help", "Tabular"), ("--model.verifiers.help", "JSONSchemaVerifier")],
)
def test_help_of_a_kind_lists_its_classes(capsys: pytest.CaptureFixture[str], option: str, name: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", option])
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert name in lines
    assert not {"PolicyModule", "OnlineModule", "Task", "Verifier"} & set(lines)


def test_keys_that_a_config_lacks_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"completion": "4", "answer": "4"}\n')
    error = error_of(capsys, "--samples", tmp_path / "rows.jsonl", command="verify")
    assert error == "data.task, model: required: give a config that holds them, with --config FILE.yaml"
    (tmp_path / "bare.yaml").write_text("seed_everything: 1\n")
    error = error_of(capsys, tmp_path / "bare.yaml")
    assert error == "data.task, model: required: give a config that holds them, with --config FILE.yaml"
