"""Every example trains, and does what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import yaml

from grpo_lightning.__main__ import main

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs name their files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def weights(folder: Path, example: str, *options: str) -> dict[str, torch.Tensor]:
    """Train an example for a few optimizer steps, and give the weights that it exports."""
    few = {
        "trainer.default_root_dir": folder, "trainer.max_steps": 6, "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1, "trainer.enable_progress_bar": "false", "data.val_batch_size": 4,
        "data.prompts_per_step": 4, "data.group_size": 4, "data.sampling.max_new_tokens": 16,
        # Without the warm start nothing is solved; the share of repeated tokens differs in every group.
        "warm_start": "null", "model.init_args.policy.init": "random",
        "model.init_args.verifiers": "[{class_path: RepetitionPenalty, init_args: {ngram_size: 1}}]",
    }  # fmt: skip
    arguments = [text for key, value in few.items() for text in (f"--{key}", str(value))]
    main(["fit", "--config", f"examples/{example}.yaml", *arguments, *options])
    (run,) = (folder / example).iterdir()
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_short(file: Path) -> None:
    tree = ast.parse(file.read_text())
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = [text for number, text in enumerate(file.read_text().splitlines(), 1) if number not in docstrings]
    assert len([text for text in lines if text.strip()]) <= 40


def test_an_objective_of_ones_own_trains_from_yaml(tmp_path: Path) -> None:
    own = weights(tmp_path / "own", "own_objective")
    assert equal(own, weights(tmp_path / "again", "own_objective"))
    other = weights(tmp_path / "tau", "own_objective", "--model.init_args.objective.init_args.tau", "9.0")
    assert not equal(own, other)
    clip = weights(tmp_path / "clip", "own_objective", "--model.init_args.objective", "clip")
    assert not equal(own, clip)
    (run,) = (tmp_path / "own/own_objective").iterdir()
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["objective"]
    assert saved == {"class_path": "examples.own_objective.SoftGate", "init_args": {"tau": 2.0}}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--model.init_args.epsilon", "0.1"],
            "model.epsilon: epsilon belongs to Clip, but model.objective is a class",
        ),
        (["--model.init_args.objective.init_args.tau", "0"], "SoftGate: tau must be positive, but is 0.0"),
        (["--model.init_args.objective.init_args.tao", "1"], "model.objective: .*tao"),
        (["--model.init_args.objective", "Softgate"], "model.objective: .*Softgate: give one of 'clip', 'cispo', or"),
    ],
)
def test_mistakes_with_an_objective_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as error:
        weights(tmp_path, "own_objective", *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: error")]
    assert re.search(sentence, line), line


def test_the_classes_are_known_by_their_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    for key, name, option in (("objective", "Clip", "epsilon_high"), ("advantage", "GroupStd", "eps")):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", "configs/quickstart.yaml", f"--model.{key}.help", name])
        assert f"--{key}.{option}" in capsys.readouterr().out
