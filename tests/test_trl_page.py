"""docs/coming-from-trl.md: every key of ours on it exists, and every option of TRL's GRPOConfig is on it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo_lightning.callbacks as callbacks
import grpo_lightning.verifiers as verifiers
from grpo_lightning.__main__ import main
from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.rollout import RolloutDataModule, SamplingParams
from grpo_lightning.tasks import Tabular

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/coming-from-trl.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.S)
ROWS = [line.strip("|").split("|") for line in PROSE.splitlines() if line.startswith("| `")]
QUOTED = re.findall(r"`([^`]+)`", PROSE)
KEYS = sorted(
    {
        text.split(":")[0]
        for text in QUOTED
        if re.match(r"(model|data|trainer|checkpoint|rollouts)\.[a-z_.]+(:|$)", text)
    }
    | {"run_dir", "ckpt_path", "seed_everything"}
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that a config can hold, as the command line prints it."""
    file = tmp_path_factory.mktemp("config") / "rows.jsonl"
    options = ["--data.task", "Tabular", "--data.task.path", str(file), "--print_config"]
    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs/lfm_gsm8k.yaml"), *options])
    printed: dict[str, Any] = yaml.safe_load(out.getvalue())
    return printed


def holds(node: Any, key: str) -> bool:
    for part in key.split("."):
        if part not in node and "init_args" in node:
            node = node["init_args"]
        if part not in node:
            return False
        node = node[part]
    return True


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_ours_exists(config: dict[str, Any], key: str) -> None:
    assert key in QUOTED or any(text.startswith(f"{key}:") for text in QUOTED)
    assert holds(config, key)


def test_a_key_that_does_not_exist_is_seen(config: dict[str, Any]) -> None:
    assert len(KEYS) > 40
    assert not any(
        holds(config, key) for key in ("model.num_generations", "data.sampling.top", "trainer.lr", "out_dir")
    )


def test_options_of_classes_exist() -> None:
    named = [found.groups() for text in QUOTED if (found := re.match(r"([A-Z]\w+)\.([a-z_]+)", text))]
    assert len(named) >= 6
    for owner, option in named:
        cls = getattr(verifiers, owner, None) or getattr(callbacks, owner)
        assert option in inspect.signature(cls).parameters, f"{owner}.{option}"


def test_each_row_is_marked() -> None:
    assert len(ROWS) > 40
    for trl, ours, mark in ROWS:
        assert re.match(r" (same|better|not here)", mark), trl
        assert ours.strip() or mark.strip() == "not here", trl


def test_every_option_of_trl_is_on_the_page() -> None:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed: pip install -e '.[bench]' brings it")
    theirs = {name for trl, *_ in ROWS for name in re.findall(r"`([^`]+)`", trl)}
    folder = Path(spec.origin).parent / "trainer"
    assert fields(folder / "grpo_config.py", "GRPOConfig") - theirs == set()
    assert parameters(folder / "grpo_trainer.py", "GRPOTrainer") - {"self", "args"} - theirs == set()


def fields(file: Path, name: str) -> set[str]:
    """The fields that a dataclass defines itself; importing TRL would take seconds."""
    body = _class(file, name).body
    return {one.target.id for one in body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)} - {
        "_VALID_DICT_FIELDS"
    }


def parameters(file: Path, name: str) -> set[str]:
    (init,) = (one for one in _class(file, name).body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    return {one.arg for one in init.args.args}


def _class(file: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(file.read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def test_the_pages_python_builds_what_it_says(tmp_path: Path) -> None:
    reward, _, here = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    built: dict[str, Any] = {}

    class Trainer:
        """Lightning's would load a model from the hub."""

        def __init__(self, max_steps: int) -> None:
            built["max_steps"] = max_steps

        def fit(self, module: GRPOModule, datamodule: RolloutDataModule) -> None:
            built.update(module=module, data=datamodule)

    scope: dict[str, Any] = {
        "dataset": [{"prompt": "Hi"}] * 3, "GRPOModule": GRPOModule, "RolloutDataModule": RolloutDataModule,
        "Tabular": Tabular, "SamplingParams": SamplingParams, "Trainer": Trainer,
    }  # fmt: skip
    exec(reward + here, scope)
    assert built["module"].policy_config.path == "Qwen/Qwen2.5-0.5B-Instruct"
    (verifier,) = built["module"].verifiers.values()
    (prompt, *_) = Tabular([{"prompt": "Hi"}] * 3, val_size=1).prompts("train")
    assert [verifier.reward(verifier.verify(prompt.sample(text))) for text in ("a" * 20, "a")] == [0, -19]
    assert (built["data"].group_size, built["max_steps"]) == (8, 500)
