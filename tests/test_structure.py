"""The shape of the project: import direction, light imports, file sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "grpo_lightning"

# A file imports only from packages named before its own.
ORDER = [
    "errors",
    "shipped",
    "hub",
    "output",
    "stored",
    "types",
    "curves",
    "intervals",
    "phases",
    "lightning_private",
    "functional",
    "objectives",
    "advantages",
    "verifiers",
    "tasks",
    "constraints",
    "environments",
    "speed",
    "models",
    "rollout",
    "algorithms",
    "cli",
    "commands",
    "__main__",
]
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").glob("*.py")])


def all_imports(file: Path) -> set[str]:
    """The modules that a file imports, with those inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def imports(file: Path) -> set[str]:
    """Those of the project."""
    return {name for name in all_imports(file) if name.split(".")[0] == "grpo_lightning" and name != "grpo_lightning"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    parts = {name.split(".")[1] for name in imports(file)}
    if file.parent.name == "callbacks":
        assert parts <= {"errors", "output", "types", "curves", "lightning_private", "stored", "rollout", "algorithms"}
        return
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not parts
        return
    assert all(ORDER.index(part) <= ORDER.index(own) for part in parts), f"{file} imports {sorted(parts)}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_say_first_what_a_thing_is_or_does(file: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, documented)]
    assert not [text for text in texts if text and text.startswith(("Args:", "Raises:", "Returns:"))]


def test_the_tests_of_direction_see_the_imports() -> None:
    assert "grpo_lightning.models.policy" in imports(PACKAGE / "algorithms/base.py")


def test_every_package_that_is_imported_is_declared() -> None:
    declared = set(re.findall(r'"([\w-]+)(?:\[\w+\])?[><=]', (ROOT / "pyproject.toml").read_text()))
    # The sandbox's files run as scripts and find each other by their bare names.
    known = {*sys.stdlib_module_names, "grpo_lightning", *(file.stem for file in SOURCES)}
    used = {name.split(".")[0] for file in SOURCES for name in all_imports(file)}
    names = {"yaml": "pyyaml", "IPython": "ipython"}  # the latter is there where a notebook is
    # A part of datasets, of transformers, of torch, and of math-verify.
    known |= {"pyarrow", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "sympy", "latex2sympy2_extended"}
    used -= known
    assert {names.get(name, name.replace("_", "-")) for name in used} - declared == set()


def test_what_ci_tests_is_what_is_supported() -> None:
    allowed = {
        requirement.name: requirement.specifier
        for line in re.findall(r'^  "([^"]+)",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
        if re.search("[<>=]", line)
        for requirement in [Requirement(line)]
    }
    tested = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert {name for name in allowed if name in tested and not allowed[name].contains(tested[name])} == set()
    floor, ceiling = (allowed["transformers"].filter([f"5.{minor}" for minor in range(100)]) for _ in range(2))
    assert f"Supported is transformers {next(iter(floor))} to {list(ceiling)[-1]}." in (ROOT / "README.md").read_text()


def test_every_package_is_installed() -> None:
    listed = re.findall(r'^  "(grpo_lightning[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")}
    assert set(listed) == folders | {"grpo_lightning.callbacks", "grpo_lightning.configs"}


@pytest.mark.parametrize(
    "module",
    [
        "grpo_lightning",
        *(f"grpo_lightning.{name}" for name in ("curves", "environments", "intervals", "tasks", "types", "verifiers")),
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets', 'sympy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_fit_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350
