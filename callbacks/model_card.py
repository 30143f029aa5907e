"""The model card of an exported policy: what it was made of, how, and how good it is. It names no local path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning import __version__
from grpo_lightning.stored import newest

_LOCAL_PATH = re.compile(r"(?<![\w.:/])~?(?:/[\w.@+-]+)+(/[\w.@+-]+)/?")
"""An absolute path of two parts or more; a single one may be ``</think>``."""

_SHOWN = {"trainer": ("max_steps", "max_epochs", "precision"), "data": None, "model": None, "seed_everything": None}
"""Keys of a config that say what was learned and how; ``None`` for all below."""


def model_card(
    run_dir: Path, base: str, results: Sequence[tuple[str, str]], is_adapter: bool, weights: str = ""
) -> str:
    """The text of ``README.md``.

    Args:
        run_dir: the directory of the run. Its ``config.yaml`` and ``environment.json``, which hold no keys and
            passwords, are used where they exist: a run from Python has none.
        base: the path of the policy that was trained.
        results: what was measured, such as ``("validation accuracy", "0.750 (95 % interval ...)")``.
        is_adapter: whether the folder holds a LoRA adapter alone.
        weights: what a reader must know of the weights; may be empty.
    """
    config = _read(newest(run_dir, "config", ".yaml"))
    made_with = _read(newest(run_dir, "environment", ".json"))
    model, data = config.get("model") or {}, config.get("data") or {}
    task = data.get("task") or {}
    options = task.get("init_args") or {}
    source = options.get("path")
    base, warm_start = _base(base)
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers", "pipeline_tag": "text-generation"}
    head |= {"base_model": base} if _is_of_hub(base) else {}
    head |= {"datasets": [source]} if isinstance(source, str) and _is_of_hub(source) else {}
    head["tags"] = ["grpo-lightning", "reinforcement-learning"]
    method = str(model.get("class_path", "")).rpartition(".")[2].removesuffix("Module") or "grpo-lightning"
    facts = [("base", f"{_named(base)}{warm_start}"), ("method", method)]
    facts += [("weights", weights)] if weights else []
    if task:
        facts.append(("data", " ".join(filter(None, [_class(task), _named(source) if source else ""]))))
    verifiers = (model.get("init_args") or {}).get("verifiers")
    if verifiers:
        facts.append(("verifier", ", ".join(_class(one) for one in _listed(verifiers))))
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---",
        f"# {_named(base)}, trained with verifiable rewards",
        f"{'A LoRA adapter' if is_adapter else 'A policy'} trained by grpo-lightning {__version__}.",
        _table(facts),
    ]
    if results:
        parts += ["## Results", _table(results)]
    if config:
        shown = yaml.safe_dump(_without_nulls(_selected(config)), sort_keys=False, allow_unicode=True, width=110)
        parts += ["## Settings", f"```yaml\n{shown}```"]
    if made_with:
        versions = ", ".join(f"{name} {version}" for name, version in (made_with.get("versions") or {}).items())
        command = " ".join(map(str, made_with.get("command") or ()))
        parts += [
            "## Made with",
            f"```bash\n{command}\n```",
            f"{versions}; {made_with.get('device', 'device unknown')}.",
        ]
    return _LOCAL_PATH.sub(lambda found: found[1][1:], "\n\n".join(parts)) + "\n"


def _base(path: str) -> tuple[str, str]:
    """The model that a run started from, and in words what came between; a warm start lies in the run's directory."""
    warm = Path(path).parent
    if warm.name != "warm_start" or not (warm / "config.yaml").is_file():
        return path, ""
    policy = yaml.safe_load((warm / "config.yaml").read_text())["model"]["init_args"]["policy"]
    random = ", from random weights" if policy.get("init") == "random" else ""
    return str(policy["path"]), f", after a supervised warm start{random}"


def _is_of_hub(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".") and not Path(name).exists()


def _named(path: str) -> str:
    """A name on the hub, or the last part of a local path."""
    return path if _is_of_hub(path) else Path(path).name


def _class(named: Any) -> str:
    return str(named["class_path"] if isinstance(named, Mapping) else named).rpartition(".")[2]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {text.replace('|', '&#124;')} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _selected(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: config.get(key) if names is None else {name: (config.get(key) or {}).get(name) for name in names}
        for key, names in _SHOWN.items()
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inside) for key, inside in value.items() if inside not in (None, {}, [])}
    return [_without_nulls(inside) for inside in value] if isinstance(value, list) else value


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a YAML or JSON file, or nothing where it does not exist."""
    read = json.loads if file.suffix == ".json" else yaml.safe_load
    return dict(read(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
