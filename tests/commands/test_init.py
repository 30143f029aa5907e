"""What ``grpo init`` writes runs as it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.config_files import read_config_files
from grpo_lightning.cli.known_keys import check_keys
from grpo_lightning.commands.init.config import ALGORITHMS
from grpo_lightning.commands.init.kinds import KINDS
from grpo_lightning.environments import Call, ToolEnvironment, calculator
from grpo_lightning.shipped import CONFIGS
from grpo_lightning.tasks import Tabular
from tests.cli.test_user_errors import error_of
from tests.test_docs_site import blocks


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import sys

    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in ("verifier", "tools"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_config_is_one(kind: str, algorithm: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mine", "--task", kind, "--algorithm", algorithm, "--model", "org/a model"]
    if algorithm == "sft" and not KINDS[kind].has_solutions:
        assert error_of(capsys, *arguments, command="init").startswith("--algorithm: sft needs worked solutions")
        assert not Path("mine").exists()
        return
    main(["init", *arguments])
    file = Path("mine/mine.yaml")
    check_keys(read_config_files(["fit", "--config", str(file)]), [], "fit")
    config = yaml.safe_load(file.read_text())
    assert config["model"]["class_path"] == f"{algorithm.upper()}Module"
    assert config["model"]["init_args"]["policy"]["path"] == "org/a model"
    assert ast.get_docstring(ast.parse(Path("mine/verifier.py").read_text()))
    assert max(map(len, file.read_text().splitlines())) <= 130


@pytest.mark.parametrize("kind", ["math", "csv", "json", "tools"])
def test_the_verifier_is_right_about_the_data(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", "mine", "--task", kind])
    monkeypatch.chdir("mine")
    main(["check", "mine.yaml"])
    assert "correct to MyVerifier, and no certainly wrong one is" in capsys.readouterr().out


def test_the_config_and_the_verifier_of_the_tutorial_fit_the_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs/tutorial.md"
    (config,), (verifier,) = blocks(page, "yaml"), blocks(page, "python")
    main(["init", "my_task", "--task", "math"])
    monkeypatch.chdir("my_task")
    Path("my_task.yaml").write_text(config)
    Path("verifier.py").write_text(verifier)
    main(["check", "my_task.yaml"])
    assert "correct to MyVerifier, and no certainly wrong one is" in capsys.readouterr().out


def test_it_trains(
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["init", "mine", "--model", tiny_model("llama")])
    printed = capsys.readouterr().out
    assert "cd mine" in printed
    monkeypatch.chdir("mine")
    few = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--data.group_size", "2"]
    main(["fit", "mine.yaml", *few, "--trainer.enable_progress_bar", "false", "--data.sampling.max_new_tokens", "4"])
    (run,) = Path("runs/mine").iterdir()
    assert (run / "policy/adapter_config.json").is_file()


def test_it_trains_with_tools_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shipped decoder whose template shows tools, with random weights.
    main(["init", "mine", "--task", "tools", "--model", str(CONFIGS / "tiny_decoder_turns")])
    monkeypatch.chdir("mine")
    few = {
        "trainer.max_steps": "1", "trainer.limit_val_batches": "0", "summary.validate_first": "false",
        "trainer.enable_progress_bar": "false", "model.policy.init": "random", "data.group_size": "2",
        "data.sampling.max_new_tokens": "4", "data.environment.max_tokens": "192",
    }  # fmt: skip
    main(["fit", "mine.yaml", *(text for key in few for text in (f"--{key}", few[key]))])
    (run,) = Path("runs/mine").iterdir()
    assert (run / "policy/adapter_config.json").is_file()


def test_the_tool_knows_what_the_answers_need(monkeypatch: pytest.MonkeyPatch) -> None:
    main(["init", "mine", "--task", "tools"])
    monkeypatch.chdir("mine")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    environment = ToolEnvironment(["tools.price", calculator])
    for prompt in Tabular(".", prompt_column="question").prompts("test"):
        count, items = re.findall(r"What do (\d+) (\w+)s cost", prompt.messages[-1]["content"])[0]
        price = environment.run(Call("price", {"item": items}))
        assert environment.run(Call("calculator", {"expression": f"{count} * {price}"})) == prompt.answer
    assert "there is no 'car'; there are: pencil" in environment.run(Call("price", {"item": "car"}))


def test_the_rows_are_those_of_the_files() -> None:
    main(["init", "mine"])
    task = Tabular("mine", prompt_column="question", val_size=50)
    assert [len(task.prompts(split)) for split in ("train", "val", "test")] == [350, 50, 100]
    train, test = ({prompt.messages[-1]["content"] for prompt in task.prompts(split)} for split in ("train", "test"))
    assert not train & test


def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "mine"])
    assert error_of(capsys, "mine", command="init") == "init: mine exists: give another name, or remove it"
    assert error_of(capsys, command="init").startswith("init: give a name")
    assert error_of(capsys, "other", "--task", "maths", command="init") == (
        "--task: must be one of math, json, code, csv, gym, tools, not maths"
    )
