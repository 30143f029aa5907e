"""``--help`` of the subcommands that take a config, and ``--KEY.help``, without loading torch."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from grpo_lightning.cli.option_table import NamedClass, Option, Options, option_table
from grpo_lightning.cli.subcommands import SUMMARIES, WITH_KEYS_ALONE

_PARTS = {
    "run": "where it starts and ends",
    "model": "the policy, its verifiers, and how it learns; --model.help lists the classes",
    "data": "the task, and how completions are sampled",
    "callbacks": "what every run has",
    "trainer": "Lightning's Trainer",
}
"""The order of the keys: ours first."""

INDENT = 30
"""Where the second column starts."""


def help_asked_for(arguments: Sequence[str]) -> str | None:
    """The answer to a command line that ends with a question; ``None`` where it does not, or the table has no answer.

    A class of the user's own is not in the table, nor are Lightning's: the parser itself answers for them.

    Args:
        arguments: the subcommand and its options.
    """
    subcommand, *others = arguments
    if subcommand in WITH_KEYS_ALONE and {"-h", "--help"} & set(others):
        return _of_subcommand(subcommand, option_table())
    asked = [index for index, name in enumerate(others) if name.partition("=")[0].endswith(".help")]
    if not asked:
        return None
    option, has_value, value = others[asked[-1]].partition("=")
    words = [*([value] if has_value else []), *others[asked[-1] + 1 :]]
    key = option.removeprefix("--").removesuffix(".help")
    return _of_class(key, words[0] if words else "", option_table()) if len(words) < 2 else None


def _of_subcommand(subcommand: str, table: Options) -> str:
    groups: dict[str, dict[str, Option]] = {name: {} for name in _PARTS}
    for key, option in {**table.subcommands.get(subcommand, {}), **table.keys}.items():
        first, dot, _ = key.partition(".")
        groups[first if first in _PARTS else "callbacks" if dot else "run"][key] = option
    lines = [
        f"usage: grpo {subcommand} --config FILE [--KEY VALUE ...]",
        "",
        f"{SUMMARIES[subcommand].capitalize()}.",
        "",
    ]
    lines += _entry("--config FILE", "YAML with keys as below, nested; may be given several times, later files win")
    lines += _entry("--print_config", "print the config with all defaults, and end")
    for name, options in groups.items():
        lines += ["", f"{name}: {_PARTS[name]}"]
        for key, option in options.items():
            lines += _option(key, option, table)
        if name == "model":
            lines += ["", "model.class_path: GRPOModule"]
            for key, option in table.classes["GRPOModule"].options.items():
                lines += _option(f"model.{key}", option, table)
    lines += ["", "The options of a class, and the classes there are:"]
    lines += [
        f"  grpo {subcommand} --{words}"
        for words in ("model.help PPOModule", "data.task.help Tabular", "data.task.help")
    ]
    return "\n".join(lines)


def _of_class(key: str, name: str, table: Options) -> str | None:
    option = table.option(key)
    classes = table.of_kind(option.kinds()) if option is not None else {}
    if not classes:
        return None
    if not name and len(classes) > 1:
        lines = [f"--{key}.help NAME prints the options of one of", ""]
        return "\n".join(
            [*lines, *(line for item in sorted(classes.items()) for line in _entry(item[0], item[1].summary))]
        )
    cls = table.find(name) if name else next(iter(classes.values()))
    return None if cls is None or cls not in classes.values() else _class_text(key, cls, table)


def _class_text(key: str, cls: NamedClass, table: Options) -> str:
    lines = [f"{cls.path}: {cls.summary}", ""]
    for name, option in cls.options.items():
        lines += _option(f"{key}.{name}", option, table)
    return "\n".join(lines)


def _option(key: str, option: Option, table: Options) -> Iterator[str]:
    """A key with its type and default, then its help."""
    names = list(table.of_kind(option.kinds()))
    text = option.help.rstrip(".") or key.rpartition(".")[2].replace("_", " ")
    if option.required or key == "model":
        text += " (required)"
    elif "efault: " not in text:
        text += f" (default: {option.default if isinstance(option.default, str) else json.dumps(option.default)})"
    if names and option.kinds()[0] not in names:
        text += f". One of {', '.join(sorted(names))}; --{key}.help lists them"
    yield from _entry(f"--{key} {option.type}", text)


def _entry(head: str, text: str) -> Iterator[str]:
    """Two columns; the second starts on a line of its own where the first is too long."""
    width = min(120, max(80, shutil.get_terminal_size((110, 24)).columns))
    lines = textwrap.wrap(text, width - INDENT, break_on_hyphens=False) or [""]
    if len(head) + 4 <= INDENT:
        yield f"  {head:{INDENT - 2}}{lines.pop(0)}".rstrip()
    else:
        yield f"  {head}"
    yield from (" " * INDENT + line for line in lines)
