"""A config with every default, from the table of options and without loading torch.

This answers ``--print_config`` where the answer is certain: all classes that the config names are in the table, and
each value is of just the type that its key takes. For the rest the parser answers, seconds later; for all of it, if the
table was written with other versions of torch or Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from grpo_lightning.cli.known_keys import given_keys
from grpo_lightning.cli.option_table import NamedClass, Option, Options, option_table
from grpo_lightning.cli.subcommands import LIGHTNING_SUBCOMMANDS


class _Unsure(Exception):
    """Only the parser can tell."""


def print_config_asked_for(contents: Sequence[Mapping[str, Any]], arguments: Sequence[str]) -> str | None:
    """The answer to ``--print_config``; ``None`` where it is not asked for, or the parser has to answer.

    Args:
        contents: those of the config files, in order.
        arguments: the subcommand and its options.
    """
    subcommand, *others = arguments
    if subcommand not in LIGHTNING_SUBCOMMANDS or "--print_config" not in others:
        return None
    if not option_table().is_of_these_versions():
        return None
    try:
        config = _resolved(contents, others, subcommand)
    except _Unsure:
        return None
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()


def _resolved(contents: Sequence[Mapping[str, Any]], options: Sequence[str], subcommand: str) -> dict[str, Any]:
    keys = [word.partition("=")[0] for word in options if word.startswith("--")]
    if "--config" in keys[len(contents) :] or any(key.endswith("+") for key in keys):
        raise _Unsure  # a key before a config that may have it as well; a list that is continued
    table = option_table()
    known = {**table.keys, **table.subcommands[subcommand]}
    ignored = {name for others in table.subcommands.values() for name in others} - set(known)
    layers = [{k: v for k, v in content.items() if k not in ignored} for content in contents]
    return _Resolution(table).options(known, [*layers, *given_keys(options)])


class _Resolution:
    """Fills in what the layers, config files and then keys of the command line, leave out."""

    def __init__(self, table: Options) -> None:
        self.table = table

    def options(self, known: Mapping[str, Option], layers: Sequence[Any]) -> dict[str, Any]:
        """The options of a class, or of the whole config.

        Args:
            known: the options that there are, by their dotted names.
            layers: what is given of them, nested; a later one overrides.
        """
        if not all(isinstance(layer, Mapping) for layer in layers):
            raise _Unsure
        names = dict.fromkeys(key.partition(".")[0] for key in known)
        if any(name not in names for layer in layers for name in layer):
            raise _Unsure
        found = {}
        for name in names:
            given = [layer[name] for layer in layers if name in layer]
            if name in known:
                found[name] = self.value(known[name], given)
            else:
                inside = {key.partition(".")[2]: option for key, option in known.items() if key.startswith(f"{name}.")}
                found[name] = self.options(inside, given)
        return found

    def value(self, option: Option, given: Sequence[Any]) -> Any:
        """The value of one option, of what the layers give for it."""
        if option.required and not given:
            raise _Unsure
        kinds = self.table.of_kind(option.kinds())
        layers = given if option.required else [option.default, *given]
        last = layers[-1]
        if not kinds or not isinstance(last, (Mapping, list, str)) or last in option.words():
            return simple(option, last)
        if isinstance(last, list):
            return [self.named(kinds, [item]) for item in last]
        # Only the options of a class can stay.
        words = option.words()
        others = [at for at, layer in enumerate(layers) if layer in words or not isinstance(layer, str | Mapping)]
        return self.named(kinds, layers[max(others, default=-1) + 1 :])

    def named(self, kinds: Mapping[str, NamedClass], layers: Sequence[Any]) -> dict[str, Any]:
        """A class with its options."""
        layers = [{"class_path": layer} if isinstance(layer, str) else layer for layer in layers]
        if not all(isinstance(layer, Mapping) for layer in layers):
            raise _Unsure
        alone = next(iter(kinds.values())) if len(kinds) == 1 else None
        classes = [self.table.find(layer["class_path"]) for layer in layers if "class_path" in layer] or [alone]
        cls = classes[0]
        if cls is None or any(other is not cls for other in classes) or cls not in kinds.values():
            raise _Unsure  # somebody else's class; or one instead of another, of whose options some may stay
        inits = []
        for layer in layers:
            beside = {key: value for key, value in layer.items() if key not in ("class_path", "init_args")}
            inits += [layer.get("init_args") or {}, beside]
        options = self.options(cls.options, inits)
        return options if cls.is_plain else {"class_path": cls.path, **({"init_args": options} if options else {})}


def simple(option: Option, value: Any) -> Any:
    """A value as the parser would read it, if it is certain."""
    words = option.words()
    if value is None or isinstance(value, bool):
        is_right = ("null" if value is None else "bool") in words
    elif isinstance(value, int):
        is_right = "int" in words
        if not is_right and "float" in words:
            return float(value)
    elif isinstance(value, float):
        is_right = "float" in words
    elif isinstance(value, str):
        return _text(option, value)
    elif isinstance(value, list):
        inside = option.type.partition("list of ")[2].split(" | ")
        kinds = {str: "str", int: "int", float: "float"}
        is_right = all(item in inside or kinds.get(type(item)) in inside for item in value)
        is_right &= option.type.startswith("list of ")
    else:
        is_right = isinstance(value, dict) and option.type in ("dict", "Mapping")
    if not is_right:
        raise _Unsure
    return value


def _text(option: Option, value: str) -> Any:
    words = option.words()
    if words == ["str"] or (value in words and value not in _TYPES):
        return value
    if "float" in words and "str" not in words:
        try:
            return float(value)  # such as 1e-4, which is a text in YAML
        except ValueError as error:
            raise _Unsure from error
    try:
        read: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    is_text = set(words) <= {"str", "Path", "null"} and read is not None and not isinstance(read, str)
    if "str" not in words or not (is_text or read == value):
        raise _Unsure  # the parser may read a text that looks like something else as that
    return value


_TYPES = ("str", "int", "float", "bool", "null", "dict")
