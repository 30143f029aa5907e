"""docs/algorithms.md: every class is on it, and its YAML is accepted and builds what its text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.advantages import Advantage
from grpo_lightning.algorithms import EntropyBonus, PolicyModule, TeacherContext
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.objectives import Objective
from tests.objectives.cases import subclasses

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/algorithms.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def shipped(base: type) -> list[str]:
    return [kind.__name__ for kind in subclasses(base) if kind.__module__.startswith("grpo_lightning.")]


BASES = (PolicyModule, Objective, Advantage, EntropyBonus, TeacherContext)


@pytest.mark.parametrize("name", [name for base in BASES for name in shipped(base)])
def test_every_class_has_a_row_and_a_paragraph(name: str) -> None:
    assert f"| `{name}` |" in PAGE
    assert f"**`{name}`**" in PAGE


@pytest.mark.parametrize("name", shipped(Objective))
def test_every_objective_but_the_default_is_in_the_yaml(name: str) -> None:
    assert name == "Clip" or any(f"class_path: {name}," in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(block.split())[:60])
def test_the_yaml_is_accepted_and_not_the_default(block: str, tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/lfm_gsm8k.yaml").read_text())
    given = yaml.safe_load(block)
    config["model"]["init_args"] |= given["model"]["init_args"]
    config["model"]["class_path"] = given["model"].get("class_path", "GRPOModule")
    config["data"] |= given.get("data", {})
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump(config))
    module = parse(["--config", str(file)]).model
    assert type(module).__name__ == config["model"]["class_path"]
    built = {"objective": module.rollout_loss.objective, "advantage": getattr(module, "advantage", None)}
    built |= {"entropy_bonus": module.entropy_bonus, "context": getattr(module, "context", None)}
    for key in built.keys() & given["model"]["init_args"].keys():
        chosen = given["model"]["init_args"][key]
        if isinstance(chosen, dict):
            assert type(built[key]).__name__ == chosen["class_path"]
            assert vars(built[key]) | chosen["init_args"] == vars(built[key])
