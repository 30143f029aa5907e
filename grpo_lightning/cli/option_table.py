"""Every option of the command line, from a table that is read without loading torch.

The parser imports all classes, which takes seconds: torch 1.2, Lightning's command line 2.9 more, and ours 1.3. Help,
completion, keys that do not exist and the defaults of a config are answered from here instead.

``python -m grpo_lightning.cli.write_options`` writes the table from that parser; a test checks that it is up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("options.json")
SUBCOMMANDS = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class Option:
    """A key.

    Args:
        type: as a user reads it; alternatives are separated by ``|``.
        help: one line.
        default: as YAML has it.
        choices: all values that it may have; ``None`` where it may have others.
        required: whether there is no default.
    """

    type: str
    help: str = ""
    default: Any = None
    choices: tuple[Any, ...] | None = None
    required: bool = False

    def words(self) -> list[str]:
        """The alternatives of its type."""
        return self.type.split(" | ")

    def kinds(self) -> list[str]:
        """The names of types in it: ``list of Verifier | Verifier`` has list, of and Verifier."""
        return re.findall(r"\w+", self.type)


@dataclass(frozen=True)
class NamedClass:
    """A class that a config can name: the project's, or one of torch or Lightning.

    Args:
        kind: the base class that is asked for where it can stand.
        path: its import path, as a resolved config has it.
        summary: the first paragraph of its docstring.
        options: its keys, by their dotted names.
    """

    kind: str
    path: str
    summary: str
    options: dict[str, Option]

    @property
    def is_ours(self) -> bool:
        """Whether it is a class of the project."""
        return self.path.startswith("grpo_lightning.")

    @property
    def is_plain(self) -> bool:
        """Whether it is written without a class path, since no other class can be written there."""
        return self.path.endswith(f".{self.kind}")


@dataclass(frozen=True)
class Options:
    """The table.

    Args:
        keys: those of all subcommands that take a config, by their dotted names.
        subcommands: those that one subcommand has beside them.
        classes: by their short names.
        versions: the installed versions of torch and Lightning, whose classes are in the table.
    """

    keys: dict[str, Option]
    subcommands: dict[str, dict[str, Option]]
    classes: dict[str, NamedClass]
    versions: dict[str, str]

    def is_of_these_versions(self) -> bool:
        """Whether these packages are installed as they were when the table was written."""
        return self.versions == installed(self.versions)

    def of_kind(self, kinds: Iterable[str]) -> dict[str, NamedClass]:
        """The classes that can stand where one of these kinds is asked for."""
        wanted = set(kinds)
        return {name: cls for name, cls in self.classes.items() if cls.kind in wanted}

    def find(self, class_path: str) -> NamedClass | None:
        """A class by its short name or its full path; ``None`` for those of others."""
        found = self.classes.get(class_path.rpartition(".")[2])
        is_it = found and (
            "." not in class_path or class_path.startswith("grpo_lightning.") or class_path == found.path
        )
        return found if is_it else None

    def option(self, key: str) -> Option | None:
        """The option that a dotted key names, also inside the classes of a kind: ``model.verifiers``."""
        if key in self.keys:
            return self.keys[key]
        parts = key.replace(".init_args", "").split(".")
        for end in range(len(parts) - 1, 0, -1):
            above, below = self.option(".".join(parts[:end])), ".".join(parts[end:])
            if above is not None:
                classes = self.of_kind(above.kinds()).values()
                return next((cls.options[below] for cls in classes if below in cls.options), None)
        return None


@cache
def option_table() -> Options:
    """Read the table."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    classes = {
        name: NamedClass(**cls | {"options": _options(cls["options"])}) for name, cls in content["classes"].items()
    }
    subcommands = {name: _options(options) for name, options in content["subcommands"].items()}
    return Options(_options(content["keys"]), subcommands, classes, content["versions"])


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages, without the builds that they are (``+cpu``)."""
    return {name: version(name).partition("+")[0] for name in packages}


def _options(content: dict[str, Any]) -> dict[str, Option]:
    return {
        key: Option(**option | ({"choices": tuple(option["choices"])} if "choices" in option else {}))
        for key, option in content.items()
    }
