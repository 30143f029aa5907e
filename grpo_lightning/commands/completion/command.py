"""``grpo completion``: a script with which a shell completes subcommands, keys and values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from grpo_lightning.cli.option_table import Option, Options, option_table
from grpo_lightning.cli.subcommands import SUMMARIES, WITH_KEYS_ALONE
from grpo_lightning.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")
HELP = f"""\
usage: grpo completion {"|".join(SHELLS)}

Print a script that completes the subcommands, their keys, and the values of keys that have a few. For bash:

  grpo completion bash > ~/.local/share/bash-completion/completions/grpo

It needs shtab: pip install "grpo-lightning[completion]".
"""


def main(args: Sequence[str]) -> None:
    """Print the script.

    Raises:
        ConfigError: there is no such shell, or shtab is not installed.
    """
    if set(args) & {"-h", "--help"}:
        print(HELP)
        return
    if len(args) != 1 or args[0] not in SHELLS:
        raise ConfigError(f"completion: name one of {', '.join(SHELLS)}, not {' '.join(args) or 'nothing'}")
    try:
        import shtab
    except ImportError as error:
        raise ConfigError('completion: needs shtab: pip install "grpo-lightning[completion]"') from error
    print(shtab.complete(_parser(option_table(), file=shtab.FILE), shell=args[0]))


def _parser(table: Options, file: Any) -> argparse.ArgumentParser:
    """A parser of the same keys, of which shtab makes the script; ``file`` says that a value is one."""
    parser = argparse.ArgumentParser("grpo")
    subparsers = parser.add_subparsers()
    for name, summary in SUMMARIES.items():
        subparser = subparsers.add_parser(name, help=summary)
        subparser.add_argument("files", nargs="*").complete = file  # type: ignore[attr-defined]
        if name not in WITH_KEYS_ALONE:
            continue
        subparser.add_argument("--config", help="config file").complete = file  # type: ignore[attr-defined]
        subparser.add_argument("--print_config", action="store_true", help="print the config with all defaults")
        modules = [cls.options for cls in table.of_kind(["PolicyModule"]).values()]
        of_modules = {f"model.{key}": option for options in modules for key, option in options.items()}
        for key, option in {**table.subcommands.get(name, {}), **table.keys, **of_modules}.items():
            subparser.add_argument(f"--{key}", choices=_values(option, table), help=_first_sentence(option.help))
    return parser


def _values(option: Option, table: Options) -> list[str] | None:
    """What a key may be, if that is a list of names."""
    if option.choices is not None:
        return [str(choice) for choice in option.choices]
    if set(option.type.split(" | ")) <= {"bool", "null"}:
        return ["true", "false"]
    return sorted(table.of_kind(option.kinds())) or None


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].replace("%", "%%")
