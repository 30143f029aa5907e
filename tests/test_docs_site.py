"""The documentation site: every example on it runs, every link leads somewhere, and it builds without a warning."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.cli.known_keys import check_keys
from grpo_lightning.cli.option_table import option_table
from grpo_lightning.cli.subcommands import SUMMARIES
from grpo_lightning.errors import ConfigError
from scripts import docs_site

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MODULES = ("GRPOModule", "PPOModule", "SFTModule")
WITH_EXAMPLES = [page for page in PAGES if "howto" in page.parts or page.name == "tutorial.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs"))


# -- what is written ---------------------------------------------------------------------------------------------------


def mistakes_of(content: dict[str, Any]) -> str | None:
    """What is wrong with a config, or with the part of one that a page shows: of the model, its policy or the data."""
    known = option_table().keys
    if {key.split(".")[0].removesuffix("+") for key in content} & {key.split(".")[0] for key in known}:
        wholes = [content]
    elif all(f"trainer.{key}".removesuffix("+") in known for key in content):
        return None
    else:
        parts = [content, {"policy": content}]
        wholes = [{"model": {"class_path": cls, "init_args": part}} for cls in MODULES for part in parts]
        wholes.append({"data": content})
    said = []
    for whole in wholes:
        try:
            check_keys([whole], [], "fit")
        except ConfigError as error:
            said.append(str(error))
        else:
            return None
    return said[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_yaml_is_a_config_or_part_of_one(page: Path) -> None:
    for text in blocks(page, "yaml"):
        if re.search("^(apiVersion|resources):", text, flags=re.MULTILINE):  # of Kubernetes, of SkyPilot
            continue
        content = yaml.safe_load(text)
        assert isinstance(content, dict), text
        assert mistakes_of(content) is None, text


def test_a_wrong_key_is_seen() -> None:
    assert mistakes_of({"data": {"group_sise": 8}}) is not None
    assert mistakes_of({"beta_": 0.0}) is not None
    assert mistakes_of({"trainer_": {"max_steps": 1}}) is not None
    assert mistakes_of({"beta": 0.0}) is None
    assert mistakes_of({"max_steps": 1}) is None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    for line in lines:
        for command in re.findall(r"^(?:.*\s)?grpo ([a-z][\w-]*)", line.split("#")[0]):
            assert command in SUMMARIES, line
    known = option_table().keys
    for key in re.findall(r"--((?:data|model|trainer|checkpoint|export|rollouts)\.[\w.]+)", "\n".join(lines)):
        parts = key.replace("model.init_args.", "model.").split(".")
        assert parts[0] in ("model",) or any(option.startswith(".".join(parts[:2])) for option in known), key


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_every_python_example_runs(
    page: Path, tiny_model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        # The model that is at hand instead of the hub's.
        code = code.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(tiny_model("llama")))
        code = code.replace("L.Trainer(", "L.Trainer(accelerator='cpu', logger=False, limit_val_batches=1, ")
        exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_the_tutorial_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "examples/tutorial.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "outputs are not committed"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "1")
    scope: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(ast.parse("".join(cell["source"])), cell["id"], "exec"), scope)
    assert scope["last"] == 0
    assert (tmp_path / "digits/policy/config.json").is_file()
    assert len(list((tmp_path / "digits/rollouts").rglob("*.jsonl"))) == 1


# -- the site ----------------------------------------------------------------------------------------------------------


def test_links_that_leave_the_folder_lead_to_pages() -> None:
    text = "[a](../examples/own_task.py), [b](../README.md#the-yaml), [c](https://x.y/z), [d](verifiers.md)\n"
    code = "```md\n[e](../README.md)\n```\n"
    assert docs_site.linked(text + code, "docs/howto.md") == (
        "[a](source/examples/own_task.py.md), [b](index.md#the-yaml), [c](https://x.y/z), [d](verifiers.md)\n" + code
    )
    assert docs_site.linked("[a](docs/metrics.md)", "README.md") == "[a](metrics.md)"
    assert docs_site.linked("[a](own_task.py)", "examples/README.md") == "[a](source/examples/own_task.py.md)"
    assert set(docs_site.sources_of(text + code, "docs/howto.md")) == {"examples/own_task.py"}


def test_roles_of_docstrings_are_names() -> None:
    html = "in :mod:<code>grpo_lightning.functional</code> and :class:<code>~a.Clip</code>; <code>:a</code>"
    shown = "in <code>functional</code> and <code>Clip</code>; <code>:a</code>"
    assert docs_site.on_page_content(html, None, None, None) == shown


def test_the_page_of_options_has_all_of_them() -> None:
    page = docs_site.options_page()
    table = option_table()
    keys = [*table.keys, *(key for cls in table.classes.values() for key in cls.options)]
    assert len(keys) > 200
    assert [key for key in keys if f"| `{key}` |" not in page] == []
    assert "```" not in docs_site.source_page("examples/own_task.py").strip("`\n")[3:-3].replace("```python", "")


def test_every_page_is_in_the_navigation() -> None:
    written = {name(page) for page in PAGES} | {*docs_site.PAGES.values(), "reference/options.md"}
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r":\s([\w/-]+\.md)$", text, flags=re.MULTILINE))
    assert listed == written


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "howto/own-data.html", "reference/options.html", "source/examples/own_task.py.html"):
        assert (tmp_path / page).is_file()
    assert "https://fonts" not in (tmp_path / "index.html").read_text()
