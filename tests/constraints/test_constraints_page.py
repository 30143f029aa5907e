"""docs/constraints.md: its YAML is accepted, with the names on the page, and saved as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("llguidance", reason="llguidance is an extra: pip install -e '.[constraint]'")

import grpo_lightning.constraints
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.constraints import Regex, RowSchema

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/constraints.md").read_text()


def test_the_yaml_is_accepted(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "page.yaml").write_text(block)
    args = ["--config", str(ROOT / "configs/quickstart_json.yaml"), "--config", str(tmp_path / "page.yaml")]
    options = ["--data.sampling.constraint.max_whitespace", "3", "--data.val_sampling.constraint", "Regex"]
    cli = parse([*args, *options, "--data.val_sampling.constraint.pattern", "yes|no"])
    sampling, val_sampling = cli.datamodule.sampling, cli.datamodule.val_sampling
    assert isinstance(sampling.constraint, RowSchema)
    assert sampling.constraint.max_whitespace == 3
    assert isinstance(val_sampling.constraint, Regex)
    assert val_sampling.constraint.pattern == "yes|no"
    saved = yaml.safe_load(cli.parser.dump(cli.config, skip_link_targets=False))["data"]
    assert saved["sampling"]["constraint"]["class_path"].endswith("RowSchema")
    assert parse(args).datamodule.val_sampling.constraint.max_whitespace == 20


def test_every_class_is_on_the_page() -> None:
    names = set(grpo_lightning.constraints.__all__) - {"Constraint"}
    assert {name for name in names if f"| `{name}` |" not in PAGE} == set()
