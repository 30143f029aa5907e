"""``grpo configs``: list the shipped configs, and copy them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.answer import print_answer
from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.errors import ConfigError
from grpo_lightning.shipped import CONFIGS, shipped_names

HELP = """\
usage: grpo configs [NAME ...] [--to FOLDER]

List the shipped configs. With names, copy these and what they need (a warm start, a tiny decoder) into a folder.

  NAME          as it is listed; grpo fit --config NAME runs it where it is
  --to FOLDER   default: configs, under which the copied files name each other
"""


def main(args: Sequence[str]) -> None:
    """List or copy.

    Raises:
        ConfigError: there is no such config, or a file is already there.
    """
    parser = CommandParser("configs")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--to", default="configs")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(args)
    if given.help:
        print(HELP)
        return
    shipped = shipped_names()
    names = [name.removesuffix(".yaml") for name in given.names]
    if not names:
        width = max(map(len, shipped))
        lines = [f"{name:{width}}  {_title(CONFIGS / f'{name}.yaml')}" for name in shipped]
        lines += ["", "grpo fit --config NAME runs one; grpo configs NAME copies it here, to be changed"]
        print_answer("\n".join(lines))
        return
    unknown = [name for name in names if name not in shipped]
    if unknown:
        raise ConfigError(f"configs: {unknown[0]} is not shipped: grpo configs lists those that are")
    _copy(names, Path(given.to))


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _copy(names: Sequence[str], folder: Path) -> None:
    files = _with_what_they_need(names)
    existing = [str(folder / file) for file in files if (folder / file).exists()]
    if existing:
        raise ConfigError(f"configs: {existing[0]} exists: remove it, or give another folder with --to")
    for file in files:
        target = folder / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if (CONFIGS / file).is_dir():
                shutil.copytree(CONFIGS / file, target)
            else:
                text = (CONFIGS / file).read_text(encoding="utf-8")
                target.write_text(text.replace("configs/", f"{folder.as_posix()}/"), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--to: {target} cannot be written: {error.strerror}") from error
        print(target)


def _with_what_they_need(names: Sequence[str]) -> list[str]:
    """The files of configs, and the files and folders that these name, relative to the folder of all."""
    found = [f"{name}.yaml" for name in names]
    for file in found:  # which grows
        if file.endswith(".yaml"):
            text = re.sub(r"#.*", "", (CONFIGS / file).read_text(encoding="utf-8"))
            needed = re.findall(r"configs/([\w./-]+\w)", text)
            found += [name for name in needed if name not in found and (CONFIGS / name).exists()]
    return found
