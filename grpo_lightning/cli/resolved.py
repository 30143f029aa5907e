"""A config with every default, from the table of options and without loading torch.

This answers ``--print_config`` where the answer is certain: all classes that the config names are in the table, and
each value is of just the type that its key takes. For the rest the parser answers, seconds later; for all of it, if the
table was written with other versions of torch or Lightning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml

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


class _Typed(str):
    """A value of the command line, as it was typed: the parser decides by the key's type how to read it."""


def _resolved(contents: Sequence[Mapping[str, Any]], options: Sequence[str], subcommand: str) -> dict[str, Any]:
    table = option_table()
    known = {**table.keys, **table.subcommands[subcommand]}
    ignored = {name for others in table.subcommands.values() for name in others} - set(known)
    layers = [{k: v for k, v in content.items() if k not in ignored} for content in contents]
    return _Resolution(table).options(known, [*layers, *_typed(options)])


def _typed(options: Sequence[str]) -> list[dict[str, Any]]:
    """Each ``--a.b value`` as a config would have it."""
    words = list(options)
    found: list[dict[str, Any]] = []
    while words:
        key, has_value, text = words.pop(0).partition("=")
        if key == "--print_config" and not has_value:
            continue
        if not key.startswith("-") or key.endswith("+") or not (has_value or words):
            raise _Unsure  # a list that is continued, or a mistake
        text = text if has_value else words.pop(0)
        if key in ("--config", "-c"):
            if found:
                raise _Unsure  # the file may have the keys before it as well
            continue
        content: Any = _Typed(text)
        if text.startswith(("{", "[")):
            try:
                content = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise _Unsure from error
        for part in reversed(key.removeprefix("--").split(".")):
            content = {part: content}
        found.append(content)
    return found


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
        is_class = [
            bool(kinds) and (isinstance(layer, Mapping) or (isinstance(layer, str) and bool(self.table.find(layer))))
            for layer in layers
        ]
        last = layers[-1]
        if kinds and isinstance(last, list):
            return [self.named(kinds, [item]) for item in last] if "list of " in option.type else _unsure()
        others = [layer for layer, of_class in zip(layers, is_class, strict=True) if not of_class]
        values = [_simple(option, layer) for layer in others if not (kinds and isinstance(layer, list))]
        if not is_class[-1]:
            return values[-1]
        # Only the options of a class can stay.
        start = max((at + 1 for at, of_class in enumerate(is_class) if not of_class), default=0)
        return self.named(kinds, layers[start:])

    def named(self, kinds: Mapping[str, NamedClass], layers: Sequence[Any]) -> dict[str, Any]:
        """A class with its options."""
        layers = [{"class_path": layer} if isinstance(layer, str) else layer for layer in layers]
        if not all(isinstance(layer, Mapping) for layer in layers):
            raise _Unsure
        names = [str(layer["class_path"]) for layer in layers if "class_path" in layer]
        alone = next(iter(kinds.values())) if len(kinds) == 1 else None
        cls = self.table.find(names[0]) if names else alone
        if cls is None or cls not in kinds.values() or not {*names} <= {cls.path, cls.path.rpartition(".")[2]}:
            raise _Unsure  # somebody else's class; or one instead of another, of whose options some may stay
        inits = []
        for layer in layers:
            beside = {key: value for key, value in layer.items() if key not in ("class_path", "init_args")}
            inits += [layer.get("init_args", {}), beside]
        options = self.options(cls.options, inits)
        return options if cls.is_plain else {"class_path": cls.path, **({"init_args": options} if options else {})}


def _simple(option: Option, value: Any) -> Any:
    """A value as the parser would read it, if it is certain."""
    words = option.words()
    if isinstance(value, _Typed):
        return _as_typed(words, value)
    if isinstance(value, str):
        return _text(words, value)
    if value is None or isinstance(value, bool):
        is_right = ("null" if value is None else "bool") in words
    elif isinstance(value, int):
        is_right = "int" in words
        if not is_right and "float" in words:
            return float(value)
    elif isinstance(value, float):
        is_right = "float" in words and math.isfinite(value)
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


_TYPES = {"str", "int", "float", "bool", "null", "dict"}
_NULL = ("null", "~", "")


def _as_typed(words: Sequence[str], typed: str) -> Any:
    if "str" in words:
        # A plain word is itself, whatever else the key takes; any other text may be read in another way.
        is_certain = words == ["str"] or re.fullmatch(r"[a-z][\w./-]*", typed) is not None
        return _text(words, str(typed)) if is_certain and typed.lower() not in _NULL else _unsure()
    if typed in words and typed not in _TYPES and not typed.isdigit():
        return str(typed)
    if typed == "null" and "null" in words:
        return None
    if typed in ("true", "false") and "bool" in words:
        return typed == "true"
    if re.fullmatch(r"-?(0|[1-9]\d*)", typed) and "int" in words:
        return int(typed)
    return _number(typed) if "float" in words and "int" not in words else _unsure()


def _text(words: Sequence[str], value: str) -> Any:
    if words == ["str"] or (value in words and value not in _TYPES):
        return value
    if "float" in words and "str" not in words:
        return _number(value)  # such as 1e-4, which is a text in YAML
    try:
        read: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    is_text = {*words} <= {"str", "Path", "null"} and read is not None and not isinstance(read, str)
    return value if "str" in words and (is_text or read == value) else _unsure()


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise _Unsure from error
    return number if math.isfinite(number) else _unsure()


def _unsure() -> NoReturn:
    raise _Unsure
