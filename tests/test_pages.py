"""docs/architecture.md and CONTRIBUTING.md name files that exist, and packages in the order that imports keep."""

from __future__ import annotations

import re

import pytest

from grpo_lightning.curves import find
from tests.test_structure import ORDER, ROOT

PAGES = ["docs/architecture.md", "CONTRIBUTING.md"]


def paths_of(page: str) -> set[str]:
    """What a page names in backticks or links, and looks like a path."""
    text = (ROOT / page).read_text()
    named = {name.rstrip(",") for quoted in re.findall(r"`([^`\n]+)`", text) for name in quoted.split()}
    linked = {str((ROOT / page).parent / link) for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    looks = {name for name in named if "/" in name or name.endswith((".py", ".md", ".toml"))}
    return linked | {name for name in looks if "*" not in name and find(name) is None}


def exists(name: str) -> bool:
    return any((folder / name).exists() for folder in (ROOT, ROOT / "grpo_lightning"))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_on_the_page_exists(page: str) -> None:
    paths = paths_of(page)
    assert len(paths) > 10
    assert {name for name in paths if name != "command.py" and not exists(name)} == set()


def test_the_paths_are_seen() -> None:
    assert {"grpo_lightning/rollout/collector.py", str(ROOT / "docs/../CONTRIBUTING.md")} <= paths_of(PAGES[0])
    assert {"tests/tiny.py", "pyproject.toml", "callbacks/"} <= paths_of(PAGES[1])
    assert not exists("grpo_lightning/nothing.py")


def test_the_packages_on_the_page_are_those_of_the_import_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / PAGES[0]).read_text(), flags=re.MULTILINE)
    assert rows == [name for name in ORDER if name != "__main__"]


def test_the_folders_in_the_drawing_exist() -> None:
    (drawing,) = re.findall(r"```text\n(.*?)```", (ROOT / PAGES[0]).read_text(), flags=re.DOTALL)
    assert all(len(line) <= 120 and line.isascii() for line in drawing.splitlines())
    folders = set(re.findall(r"\b(\w+/)", drawing)) - {"rollouts/"}  # of a run
    assert {"cli/", "rollout/", "callbacks/"} <= folders
    assert {name for name in folders if not exists(name)} == set()
