"""The README's code runs, with the model and data that are at hand in place of the hub's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.types import Sample
from tests.test_cli import few, only_run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_the_python_example_trains_and_saves(
    tiny_model: Callable[[str], str], gsm8k_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks("python") if "GRPOModule" in block]
    swaps = {
        '"LiquidAI/LFM2.5-1.2B-Instruct"': repr(tiny_model("lfm2")),
        "GSM8K()": f"GSM8K({gsm8k_folder!r}, limit=8)",
        "max_steps=500": "max_steps=2, accelerator='cpu', limit_val_batches=1, num_sanity_val_steps=0, logger=False",
        "max_new_tokens=512": "max_new_tokens=8",
    }
    for old, new in swaps.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert isinstance(scope["trainer"], L.Trainer)
    assert scope["trainer"].global_step == 2
    assert (tmp_path / "my-policy/adapter_config.json").is_file()
    assert len(code.strip().splitlines()) <= 16, "a dozen lines, the imports aside"


def test_the_verifier_example_judges(tmp_path: Path) -> None:
    (code,) = [block for block in blocks("python") if "ShortAndRight" in block]
    scope: dict[str, Any] = {}
    exec(code, scope)
    verifier = scope["ShortAndRight"]()
    rewards = [verifier.reward(verifier.verify(Sample("", text, "4"))) for text in ("2 + 2 = 4", "5", "x" * 300)]
    assert rewards == [1.0, 0.5, 0.0]


def test_the_yaml_example_is_a_config(tiny_model: Callable[[str], str], gsm8k_folder: str, tmp_path: Path) -> None:
    full, task = (yaml.safe_load(block) for block in blocks("yaml"))
    file = tmp_path / "readme.yaml"
    file.write_text(yaml.safe_dump(full))
    swaps = {"model.init_args.policy.path": tiny_model("lfm2"), "data.task.init_args.path": gsm8k_folder}
    main(["fit", "--config", str(file), *few(tmp_path / "runs", **swaps)])
    assert torch.load(only_run(tmp_path / "runs", "readme") / "checkpoints/last.ckpt", weights_only=True)
    assert task["data"]["task"]["class_path"] == "Tabular"
