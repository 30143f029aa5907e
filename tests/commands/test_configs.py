"""Shipped configs are found by name from anywhere, and copied with what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.cli.config_files import with_config_options
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.shipped import CONFIGS, shipped_config
from tests.cli.test_user_errors import error_of

QUICKSTART = str(CONFIGS / "quickstart.yaml")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["fit", "quickstart"], ["fit", "--config", QUICKSTART]),
        (["fit", "--config", "quickstart", "--model.beta", "0"], ["fit", "--config", QUICKSTART, "--model.beta", "0"]),
        (["fit", "-c", "configs/quickstart.yaml"], ["fit", "-c", QUICKSTART]),
        (["fit", "-c", "models/qwen3_0.6b"], ["fit", "-c", str(CONFIGS / "models/qwen3_0.6b.yaml")]),
        (["fit", "--config=quickstart.yaml"], ["fit", f"--config={QUICKSTART}"]),
        (["fit", "--run_dir", "quickstart"], ["fit", "--run_dir", "quickstart"]),
        (["fit", "mine.yaml", "quickstart"], ["fit", "--config", "mine.yaml", "--config", QUICKSTART]),
        (["fit", "--config", "../quickstart"], ["fit", "--config", "../quickstart"]),
    ],
)
def test_a_shipped_config_is_found_by_its_name(given: list[str], wanted: list[str]) -> None:
    assert with_config_options(given) == wanted


def test_the_users_own_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "configs/tiny_decoder").mkdir(parents=True)
    (tmp_path / "configs/quickstart.yaml").write_text("")
    assert shipped_config("configs/quickstart.yaml") == "configs/quickstart.yaml"
    assert PolicyConfig.of("configs/tiny_decoder").path == "configs/tiny_decoder"
    assert PolicyConfig.of("configs/tiny_decoder_code").path == str(CONFIGS / "tiny_decoder_code")
    assert PolicyConfig.of(PolicyConfig(path="org/tiny_decoder")).path == "org/tiny_decoder"


def test_they_are_listed_with_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line and not line.startswith("grpo ")}
    assert set(listed) == {str(file.relative_to(CONFIGS))[: -len(".yaml")] for file in CONFIGS.rglob("*.yaml")}
    assert all(len(title) > 20 for title in listed.values())


@pytest.mark.parametrize("folder", ["configs", "mine"])
def test_a_copy_brings_what_it_needs(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "quickstart", "--to", folder])
    copied = {str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*") if path.is_file()}
    assert {"quickstart.yaml", "quickstart_sft.yaml", "tiny_decoder/tokenizer.json"} <= copied
    config = yaml.safe_load((tmp_path / folder / "quickstart.yaml").read_text())
    assert config["warm_start"] == f"{folder}/quickstart_sft.yaml"
    assert config["model"]["init_args"]["policy"]["path"] == f"{folder}/tiny_decoder"
    error = error_of(capsys, "quickstart", "--to", folder, command="configs")
    assert error == f"configs: {folder}/quickstart.yaml exists: remove it, or give another folder with --to"


def test_a_name_that_is_not_shipped_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "quickstar", command="configs").startswith("configs: quickstar is not shipped")
    assert error_of(capsys, "quickstar.yaml") == (
        "config: there is no file quickstar.yaml (did you mean quickstart?): grpo configs lists those that are shipped"
    )
