"""Keys and simple values of a config that cannot be right, found without loading torch.

The parser finds them as well, seconds later. Only what is certain is refused here. The options of a user's own classes
and those of Lightning's Trainer are left to the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from grpo_lightning.cli.option_table import Option, Options, option_table
from grpo_lightning.cli.sentences import ELSEWHERE, TYPES, no_such_key
from grpo_lightning.errors import ConfigError

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
_OF_THE_PARSER = ("config", "c", "print_config", "help", "h")


def check_keys(contents: Sequence[Mapping[str, Any]], arguments: Sequence[str], subcommand: str) -> None:
    """See whether every key exists.

    Args:
        contents: those of the config files, in order.
        arguments: the command line after the subcommand.
        subcommand: its name.

    Raises:
        ConfigError: all keys that do not exist, and values that are not of their key's type.
    """
    check = _Check(option_table(), subcommand)
    for content in contents:
        check.options(content, check.top, "", "")
    for content in _given(arguments):
        check.options(content, check.top, "", "")
    if check.mistakes:
        raise ConfigError("; ".join(dict.fromkeys(check.mistakes)))


def _given(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each ``--a.b value`` as a config would have it."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            continue
        key, has_value, value = word.removeprefix("--").partition("=")
        if key in _OF_THE_PARSER or key.endswith(".help"):
            continue
        value = value if has_value else next(words, "")
        try:
            content: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            continue
        for part in reversed(key.removesuffix("+").split(".")):
            content = {part: content}
        yield content


class _Check:
    """Walks through configs in their order.

    Attributes:
        mistakes: a sentence each.
        classes: the class path that was last named at each key.
    """

    def __init__(self, table: Options, subcommand: str) -> None:
        self.table = table
        # A config that a run saved has the keys of its subcommand; those of the others do no harm.
        beside = {key: option for options in table.subcommands.values() for key, option in options.items()}
        self.top = {**table.keys, **beside}
        # The command itself takes its own options with _ as well as with -.
        other_spellings = {key.replace("-", "_") for key in beside if "-" in key}
        self.ignored = {subcommand, *table.subcommands, "config", *other_spellings}
        self.mistakes: list[str] = []
        self.classes: dict[str, str] = {}

    def options(self, content: Mapping[str, Any], known: Mapping[str, Option], prefix: str, place: str) -> None:
        """Check the keys of one level.

        Args:
            content: what the config has there.
            known: the options of the class, or of the whole config.
            prefix: the level's dotted name within ``known``, with a dot at its end.
            place: its dotted name within the config, likewise.
        """
        for name, value in content.items():
            key, where = f"{prefix}{name}".removesuffix("+"), f"{place}{name}".removesuffix("+")
            if where == "trainer" or (not place and name in self.ignored):
                continue
            if key in known:
                self.value(value, known[key], where)
            elif any(option.startswith(f"{key}.") for option in known):
                if isinstance(value, Mapping):
                    self.options(value, known, f"{key}.", f"{where}.")
            else:
                beside = {option.removeprefix(prefix).split(".")[0] for option in known if option.startswith(prefix)}
                self.mistakes.append(self.no_such_key(where, beside if place else {*beside, "trainer"}))

    def no_such_key(self, place: str, beside: set[str]) -> str:
        """The sentence about a key: its nearest neighbour on that level, or the same name elsewhere."""
        last = place.rpartition(".")[2]
        modules = self.table.of_kind(["PolicyModule"]).values()
        of_modules = dict.fromkeys(f"model.{key}" for module in modules for key in module.options)
        elsewhere = [key for key in (*self.top, *of_modules) if key.rpartition(".")[2] == last]
        text = no_such_key(place, {*beside, *place.split(".")[:-1]})
        is_answered = last in ELSEWHERE or "did you mean" in text
        return text if is_answered or not elsewhere else f"{text} (did you mean {' or '.join(elsewhere[:2])}?)"

    def value(self, value: Any, option: Option, place: str) -> None:
        """Check one value, and the keys inside it."""
        kinds = self.table.of_kind(option.kinds())
        if not kinds:
            mistake = must_be(option, value)
            self.mistakes += [f"{place}: {mistake}"] if mistake else []
        elif isinstance(value, list):
            for item in value:
                self.named(item, kinds, place, remember=False)
        else:
            self.named(value, kinds, place, remember=True)

    def named(self, value: Any, kinds: Mapping[str, Any], place: str, remember: bool) -> None:
        """Check the options of a class."""
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, Mapping):
            return
        alone = next(iter(kinds.values())) if len(kinds) == 1 else None
        path = value.get("class_path", self.classes.get(place) if remember else None)
        if remember and isinstance(path, str):
            self.classes[place] = path
        cls = self.table.find(path) if isinstance(path, str) else alone
        if cls is None or cls not in kinds.values() or not cls.is_ours:
            return  # newer versions of torch and Lightning may have more options
        inside = value.get("init_args")
        self.options(inside if isinstance(inside, Mapping) else {}, cls.options, "", f"{place}.")
        self.options({k: v for k, v in value.items() if k not in _OF_A_CLASS}, cls.options, "", f"{place}.")


def must_be(option: Option, value: Any) -> str | None:
    """What a value must be, if its option takes one simple type and it is another; ``None`` if it may be right."""
    if option.choices is not None:
        wanted = f"one of {', '.join(map(str, option.choices))}"
        is_right = value is None or str(value) in map(str, option.choices)
    else:
        (kind, *others) = [name for name in option.type.split(" | ") if name != "null"]
        if others or kind not in _READ or not isinstance(value, str):
            return None
        wanted, is_right = TYPES[kind], _is_read(kind, value)
    return None if is_right else f"must be {wanted}, not {value}"


_READ: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": yaml.safe_load}


def _is_read(kind: str, text: str) -> bool:
    try:
        value = _READ[kind](text)
    except (ValueError, yaml.YAMLError):
        return False
    return kind != "bool" or isinstance(value, bool)
