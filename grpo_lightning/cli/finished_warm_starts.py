"""Warm starts that earlier runs have finished: found by what they were made with, and used again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_lightning.cli.environment import software
from grpo_lightning.cli.run_dirs import TAKEN_FROM

MADE_WITH = "made_with.sha256"
"""The file in a finished ``warm_start`` with its :func:`fingerprint`."""

_PLACES = ("run_dir", "ckpt_path", "config", "reuse_warm_start")


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of what a warm start is made with, as far as is known.

    That is its resolved config, the versions of the packages, the commit of this one, and the files that the config
    names by a path or as a module, by their sizes and times of change. Data sets and models of the hub are their names.
    """
    asked = {key: value for key, value in config.items() if key not in _PLACES}
    asked["trainer"] = {key: value for key, value in config["trainer"].items() if key != "default_root_dir"}
    made_with = software()
    files = sorted({file.resolve() for key in ("model", "data", "warm_start") for file in _files(config[key])})
    known = {
        "config": asked,
        "versions": made_with["versions"],
        "commit": made_with["commits"]["grpo-lightning"],
        "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def _files(value: Any) -> Iterator[Path]:
    """The files that a part of a config names."""
    if isinstance(value, Mapping | list):
        for inside in value.values() if isinstance(value, Mapping) else value:
            yield from _files(inside)
    elif isinstance(value, str) and os.path.exists(value):
        yield from (path for path in (Path(value), *Path(value).rglob("*")) if path.is_file())
    elif isinstance(value, str) and "." in value and all(part.isidentifier() for part in value.split(".")):
        try:
            found = importlib.util.find_spec(value.rpartition(".")[0])
        except (ImportError, ValueError):
            return
        if found is not None and found.has_location and found.origin is not None:
            yield Path(found.origin)


def finished(folders: list[Path], made_with: str) -> Path | None:
    """The newest finished ``warm_start`` with a fingerprint, of the runs in some folders; ``None`` without one."""
    files = {file for folder in folders for file in folder.glob(f"*/warm_start/{MADE_WITH}")}
    same = [file for file in files if (file.parent / "policy").is_dir() and file.read_text() == made_with]
    return max(same, key=lambda file: file.stat().st_mtime_ns).parent if same else None


def take(source: Path, folder: Path) -> None:
    """Make a run's ``warm_start`` out of another run's: policy and records, as hard links where that is possible."""
    part = folder.with_name(f"{folder.name}.part")
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copytree(source / "policy", part / "policy", copy_function=_link)
    for file in (*source.glob("*.yaml"), *source.glob("*.json"), source / MADE_WITH):
        _link(str(file), str(part / file.name))
    (part / TAKEN_FROM).write_text(f"{source}\n")
    part.rename(folder)  # whole as soon as it is there: other processes wait for it


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
