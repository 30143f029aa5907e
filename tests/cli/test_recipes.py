"""``configs/models``: each puts another model into a config, with what its template needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from tests.cli.test_cli import ROOT, few, only_run
from tests.models.family_folders import MODELS, facts_of, save_family, save_published_config

RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs/models").glob("*.yaml"))}
POLICIES = {name: recipe["model"]["init_args"]["policy"] for name, recipe in RECIPES.items()}
FAMILY_OF = {name: MODELS[policy["path"]] for name, policy in POLICIES.items()}
FIRST_OF = {family: name for name, family in reversed(FAMILY_OF.items())}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_names_every_model() -> None:
    section = (ROOT / "docs/models.md").read_text().split("## Recipes")[1].split("\n## ")[0]
    for name in RECIPES:
        family, size, *_ = name.split("_")
        assert family in section.lower().replace("-", "").replace(" ", ""), name
        assert size in section.lower(), name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_switches_of_its_template(name: str) -> None:
    facts = facts_of(FAMILY_OF[name])
    assert POLICIES[name].get("chat_template_kwargs", {}).keys() == facts.get("chat_template_kwargs", {}).keys()
    task = RECIPES[name].get("data", {}).get("task", {}).get("init_args", {})
    assert task.get("chat_template") == facts.get("task_template")


@pytest.mark.parametrize("name", FIRST_OF.values())
def test_a_tiny_model_of_the_family_trains_with_its_recipe(name: str, tmp_path: Path, gsm8k_folder: str) -> None:
    options = {
        "model.init_args.policy.path": save_family(tmp_path / "model", FAMILY_OF[name]), "trainer.max_steps": 1,
        "data.task.init_args.path": gsm8k_folder, "data.task.init_args.limit": 20, "data.task.init_args.val_size": 4,
        "data.max_prompt_tokens": "null",  # a tiny tokenizer has a token per byte
    }  # fmt: skip
    recipe = ["--config", "configs/lfm_gsm8k.yaml", "--config", f"configs/models/{name}.yaml"]
    main(["fit", *recipe, *few(tmp_path, **options)])
    assert (only_run(tmp_path, "lfm_gsm8k") / "policy/adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_270m", "lfm2_350m"])  # of few layers, which is what a plan's time grows with
def test_a_recipe_is_planned_from_its_published_sizes(
    name: str, tmp_path: Path, gsm8k_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_published_config(tmp_path, POLICIES[name]["path"])
    small = ["--data.prompts_per_step", "2", "--data.group_size", "2", "--data.sampling.max_new_tokens", "32"]
    recipe = ["--config", "configs/lfm_gsm8k.yaml", "--config", f"configs/models/{name}.yaml"]
    with pytest.raises(SystemExit) as end:
        main(["plan", *recipe, "--model.policy.path", path, *small, "--memory", "64GiB", "--fast"])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert "The plan fits" in out
