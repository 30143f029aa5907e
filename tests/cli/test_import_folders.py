"""Classes of the user's own are found beside the config, from whatever folder a command is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.import_folders import import_folders


@pytest.fixture(autouse=True)
def _own_imports() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("beside", None)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Callable[[str], str]) -> Path:
    """A config, and a verifier in a file beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "beside.py").write_text(
        "from grpo_lightning.verifiers import MathVerifier\n\n\nclass Mine(MathVerifier):\n    pass\n"
    )
    config = {
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "limit_val_batches": 1, "limit_test_batches": 1,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "GRPOModule",
            "init_args": {"policy": {"path": tiny_model("llama")}, "verifiers": [{"class_path": "beside.Mine"}]},
        },
        "data": {
            "task": {"class_path": "Arithmetic", "init_args": {"train_size": 20, "val_size": 4, "test_size": 4}},
            "prompts_per_step": 2, "group_size": 2, "val_batch_size": 4,
            "sampling": {"max_new_tokens": 4},
        },
        "summary": {"validate_first": False},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.slow
def test_a_verifier_beside_the_config_is_found_from_elsewhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, empty = str(project / "mine.yaml"), tmp_path / "empty"
    empty.mkdir()
    plan = [config, "--fast", "--memory", "99GiB", "--data.max_prompt_tokens", "64"]
    clean = list(sys.path)

    def called(folder: Path, *arguments: str) -> str:
        """What a new process prints, as far as imports are concerned."""
        monkeypatch.chdir(folder)
        sys.path[:] = clean
        sys.modules.pop("beside", None)
        with nullcontext() if arguments[0] != "plan" else pytest.raises(SystemExit, match="0"):
            main(arguments)
        return capsys.readouterr().out

    assert "correct to Mine" in called(tmp_path, "check", config)
    assert "The plan fits" in called(tmp_path, "plan", *plan)
    called(tmp_path, "fit", config)
    called(tmp_path, "fit", config, "--trainer.max_steps", "2", "--ckpt_path", "last")
    (run,) = (tmp_path / "runs/mine").iterdir()
    # What a run saved finds them too: in the folders of its record.
    assert "accuracy" in called(
        empty, "test", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")
    )
    assert "0 of 8 rollouts change" in called(empty, "verify", "--samples", str(run))


def test_the_last_config_comes_first_and_the_current_folder_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "a/base.yaml": "", "b/more.yaml": "", "c/config.yaml": "", "c/environment.json": "[]",
        "run/config-2.yaml": "", "run/environment.json": '{"import_folders": ["/no"]}',
        "run/environment-2.json": '{"import_folders": ["/first", "/second"]}',
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    here = str(tmp_path)
    assert import_folders(["fit", "--config", "a/base.yaml", "--config=b/more.yaml", "--x", "1"]) == [
        f"{here}/b", f"{here}/a", here,
    ]  # fmt: skip
    assert import_folders(["test", "--config", "run/config-2.yaml"]) == [f"{here}/run", "/first", "/second", here]
    assert import_folders(["test", "--config", "c/config.yaml"]) == [f"{here}/c", here]
    assert import_folders(["fit"]) == [here]
