"""Where a config's own classes and functions are found: beside it, as Python finds the modules beside a script."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.config_files import config_paths

RECORDED_AS = "import_folders"
"""The key under which the record of a run holds them."""


def import_folders(arguments: Sequence[str]) -> list[str]:
    """The folders of a command line's configs, the last config's first, and the current folder.

    After the folder of a config that a run saved come those that the run itself had, so it can be used from anywhere.

    Args:
        arguments: the command line.
    """
    folders: list[str] = []
    for file in config_paths(arguments):
        folders = [str(file.resolve().parent), *_recorded(file), *folders]
    return list(dict.fromkeys([*folders, os.getcwd()]))


def use_import_folders(arguments: Sequence[str]) -> None:
    """Put the folders before all others that modules are imported from."""
    folders = import_folders(arguments)
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]


def record_of(config: Path) -> Path:
    """The record beside a config that a run saved: ``environment-2.json`` of ``config-2.yaml``."""
    return config.with_name(config.name.replace("config", "environment")).with_suffix(".json")


def _recorded(config: Path) -> list[str]:
    record = record_of(config)
    if not (config.name.startswith("config") and record.is_file()):
        return []
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # another program's file of that name
    folders = content.get(RECORDED_AS) if isinstance(content, dict) else None
    return [str(folder) for folder in folders or []]
