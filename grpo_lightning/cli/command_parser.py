"""The parser of a command's own options, beside which some commands take the keys of a config."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from grpo_lightning.cli.option_table import option_table
from grpo_lightning.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Options are not abbreviated, may be written with - or _, and a mistake is a :class:`ConfigError`.

    Args:
        command: the name after ``grpo``.
        options: those of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(f"grpo {command}", **{"add_help": False, "allow_abbrev": False} | options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        long = [name for name in names if name.startswith("--")]
        others = [f"--{name[2:].translate(swap)}" for name in long for swap in (_UNDERSCORES, _DASHES)]
        return super().add_argument(*dict.fromkeys([*names, *others]), **options)

    def parse_beside_keys(self, args: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command's options, and return the others too: keys of a config.

        Raises:
            ConfigError: one of the others is not a key, and resembles one of the command's options.
        """
        given, rest = self.parse_known_args(args)
        for word in rest:
            name = word.partition("=")[0]
            if name.startswith("--") and "." not in name and name[2:] not in _keys() and self._nearest(name):
                self.error(f"unrecognized arguments: {word}")
        return given, rest

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        about = re.match(r"argument (\S+): (.*)", message)
        if about:
            what = re.sub(r"invalid int value: (.*)", r"must be a whole number, not \1", about[2])
            raise ConfigError(f"{about[1].split('/')[0]}: {what}: see {self.prog} --help")
        if unknown:
            name = unknown[1].partition("=")[0]
            kind, near = ("option", self._nearest(name)) if name.startswith("-") else ("argument", None)
            hint = f" (did you mean {near}?)" if near else f": see {self.prog} --help"
            raise ConfigError(f"{name}: {self.prog} has no such {kind}{hint}")
        raise ConfigError(f"{self.prog}: {message}: see {self.prog} --help")

    def _nearest(self, name: str) -> str | None:
        own = [option for action in self._actions for option in action.option_strings[:1]]
        return next(iter(difflib.get_close_matches(name, own, n=1, cutoff=0.75)), None)


_UNDERSCORES, _DASHES = str.maketrans("-", "_"), str.maketrans("_", "-")


def _keys() -> set[str]:
    table = option_table()
    keys = {*table.keys, *(key for options in table.subcommands.values() for key in options)}
    return {*(key.partition(".")[0] for key in keys), "trainer", "config", "print_config", "help"}
