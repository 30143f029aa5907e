"""The wheel, installed in an empty folder without the repository, is enough for what the README shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import grpo_lightning

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, f'build_{sys.argv[1]}')(sys.argv[2]))"
pytestmark = pytest.mark.slow


def build(kind: str, tree: Path, out: Path) -> Path:
    """What ``python -m build --no-isolation`` does."""
    pytest.importorskip("setuptools", minversion="77")
    done = subprocess.run([sys.executable, "-c", BUILD, kind, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that the repository holds."""
    folder = tmp_path_factory.mktemp("sdist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a checkout of the repository")
    for name in listed.stdout.splitlines():
        target = folder / "tree" / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    return build("sdist", folder / "tree", folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that this has all that is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return build("wheel", tree, folder)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the wheel, and borrows the packages that it depends on."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    borrowed = tmp_path_factory.mktemp("borrowed")
    for site in dict.fromkeys([sysconfig.get_paths()["purelib"], *filter(None, sys.path)]):
        for entry in Path(site).glob("*") if site.endswith("site-packages") else ():
            if "grpo_lightning" not in entry.name and entry.suffix != ".pth" and not (borrowed / entry.name).exists():
                (borrowed / entry.name).symlink_to(entry)
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")
    return folder / "bin/python"


def grpo(python: Path, folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", "grpo_lightning", *arguments]
    done = subprocess.run(command, cwd=folder, env=clean | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_distribution_can_be_tested_and_documented(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"tests/conftest.py", "tests/tiny.py", "configs/quickstart.yaml", "docs/metrics.md", "constraints.txt"}
    assert wanted | {"examples/own_verifier.py", "scripts/compare.py", "Makefile", "CHANGELOG.md"} <= names


def test_a_released_readme_has_no_relative_link(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from absolute_links import absolute, main
    finally:
        sys.path.pop(0)
    text = "![a](b/c.png) [d](e.md#f) [g](#h) [i](https://x.y)\n```md\n[j](k.md)\n```\n"
    assert absolute(text, "https://host/o/n", "v1") == (
        "![a](https://host/o/n/raw/v1/b/c.png) [d](https://host/o/n/blob/v1/e.md#f) [g](#h) [i](https://x.y)\n"
        "```md\n[j](k.md)\n```\n"
    )
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    main("https://host/o/n", "v1", tmp_path)
    links = re.findall(r"\]\(([^)]*)\)", (tmp_path / "README.md").read_text())
    assert {link.partition(":")[0] for link in links if not link.startswith("#")} == {"https"}
    here = "https://host/o/n/"
    for link in (link for link in links if link.startswith(here)):
        _, _, path = link.removeprefix(here).split("/", 2)
        assert (ROOT / path.partition("#")[0]).exists(), link
    assert f'Repository = "{here.rstrip("/")}"\n' in (tmp_path / "pyproject.toml").read_text()
    with pytest.raises(SystemExit, match="addresses already"):
        main("https://host/o/n", "v1", tmp_path)


def test_the_wheel_is_what_it_says(wheel: Path) -> None:
    assert wheel.name.startswith(f"grpo_lightning-{grpo_lightning.__version__}-py3")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {"grpo_lightning/configs/tiny_decoder/chat_template.jinja", "grpo_lightning/cli/options.json"} <= names
    for file in (*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("configs/tiny*/*")):
        assert f"grpo_lightning/{file.relative_to(ROOT)}" in names
    assert {name.partition("/")[0] for name in names} == {"grpo_lightning", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert "Requires-Python: >=3.10" in metadata
    for minor in range(10, 15):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in metadata


def test_it_is_enough_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [str(python), "-c", "import grpo_lightning as g; print(g.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(python.parents[1]) in where.stdout, "the wheel's package, not the checkout's"
    assert grpo(python, tmp_path, "--version") == f"grpo-lightning {grpo_lightning.__version__}\n"
    assert "quickstart_sft" in grpo(python, tmp_path, "configs")
    grpo(python, tmp_path, "configs", "quickstart_sft", "--to", "mine")
    own = tmp_path / "mine/quickstart_sft.yaml"
    text = own.read_text()
    for size in ("max_steps: 1", "prompts_per_step: 2", "val_size: 8\n      train_size: 40"):
        text, number = re.subn(rf"{size.partition(' ')[0]} \d+", size, text)
        assert number == 1
    own.write_text(text)
    few = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]
    few += ["--data.prompts_per_step", "2", "--data.task.init_args.train_size", "40", "--data.val_batch_size", "4"]
    grpo(python, tmp_path, "fit", "quickstart", "--warm_start", "mine/quickstart_sft.yaml", *few)
    (run,) = tmp_path.glob("runs/quickstart/*")
    assert (run / "policy/config.json").is_file()
    assert (run / "warm_start/policy/config.json").is_file()
