"""The code of the README and of the pages runs, with the model and data that are at hand in place of the hub's."""

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
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.tasks import GSM8K
from grpo_lightning.types import Sample
from tests.cli.test_cli import few, only_run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_python_example_trains_and_saves(
    tiny_model: Callable[[str], str], gsm8k_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks("python") if "GRPOModule" in block]
    swaps = {
        '"LiquidAI/LFM2.5-1.2B-Instruct"': repr(tiny_model("lfm2")),
        "GSM8K()": f"GSM8K({gsm8k_folder!r}, limit=8)",
        '"max_steps": 500': '"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "logger": False',
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
    full, task, prompts = (yaml.safe_load(block) for block in blocks("yaml"))
    file = tmp_path / "readme.yaml"
    file.write_text(yaml.safe_dump(full))
    swaps = {"model.init_args.policy.path": tiny_model("lfm2"), "data.task.init_args.path": gsm8k_folder}
    main(["fit", "--config", str(file), *few(tmp_path / "runs", **swaps)])
    assert torch.load(only_run(tmp_path / "runs", "readme") / "checkpoints/last.ckpt", weights_only=True)
    assert task["data"]["task"]["class_path"] == "Tabular"
    (prompt, *_) = GSM8K(gsm8k_folder, **prompts["data"]["task"]["init_args"]).prompts("test")
    assert [message["role"] for message in prompt.messages] == ["user", "assistant"] * 4 + ["user"]
    assert prompt.messages[-1]["content"].endswith("write the final number on a last line as #### N")
    assert all("\n#### " in message["content"] for message in prompt.messages[1::2]), "as the prompt asks"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda page: page.name
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    found = [
        target for pair in re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)\"", text) for target in pair if target
    ]
    relative = [target.partition("#")[0] for target in found if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []


# -- docs/verifiers.md ------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/verifiers.md").read_text()


def test_the_pages_verifiers_judge() -> None:
    scope: dict[str, Any] = {}
    for code in blocks("python", PAGE):
        exec(code, scope)
    verifier = scope["NamesTheCapital"]()
    texts = ("Let me think.\nParis.", "Lyon", "I believe that it is Paris", "")
    assert [verifier.reward(verifier.verify(Sample("", text, "Paris"))) for text in texts] == [1.0, 0.5, 0.0, 0.0]
    assert scope["brevity"]("4", "4") == 1.0


@pytest.mark.parametrize("block", blocks("yaml", PAGE), ids=lambda block: block.strip().splitlines()[0].strip())
def test_the_pages_yaml_is_accepted(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/item.json").write_text('{"$id": "https://example.org/item.json", "type": "object"}')
    if block.startswith("    verifiers:"):
        # A part of the first block, at its place there.
        verifiers, _, rest = block.partition("\ndata:")
        block = f"model:\n  class_path: GRPOModule\n  init_args:\n{verifiers}" + (f"\ndata:{rest}" if rest else "")
    given = yaml.safe_load(block)
    base = yaml.safe_load((ROOT / "configs/lfm_gsm8k.yaml").read_text())
    base["model"]["init_args"] |= given.get("model", {}).get("init_args", {})
    base["data"] |= given.get("data", {})
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump(base))
    monkeypatch.chdir(tmp_path)
    cli = parse(["--config", str(file)])
    assert cli.model.verifiers
    if "refinement" in base["data"]:
        assert cli.datamodule.refinement.budget == 2
