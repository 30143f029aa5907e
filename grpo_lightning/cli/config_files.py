"""What the command line says about config files, and what is wrong with them; without loading torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.errors import ConfigError
from grpo_lightning.shipped import shipped_config, shipped_names


def with_config_options(arguments: Sequence[str]) -> list[str]:
    """``fit base.yaml --key value`` as ``fit --config base.yaml --key value``, with the paths of shipped configs."""
    subcommand, *others = arguments
    files = []
    while others and not others[0].startswith("-") and _is_config(others[0]):
        files += ["--config", others.pop(0)]
    return [subcommand, *with_shipped_configs([*files, *others])]


def _is_config(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or shipped_config(name) != name


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The same options, where ``--config quickstart`` has the path of the shipped config."""
    found = list(arguments)
    for index, argument in enumerate(found):
        option, has_value, value = argument.partition("=")
        if option in ("--config", "-c", "--warm_start"):
            if has_value:
                found[index] = f"{option}={shipped_config(value)}"
            elif index + 1 < len(found):
                found[index + 1] = shipped_config(found[index + 1])
    return found


def require_config(arguments: Sequence[str]) -> None:
    """Check that a command line names a config, or the keys that it would hold.

    Raises:
        ConfigError: neither a config is given nor the keys that it would hold.
    """
    subcommand, *others = arguments
    names = [argument.partition("=")[0] for argument in others]
    options = {name.split(".")[0] for name in names}
    if any(name.endswith(".help") for name in names):
        return
    if others and not others[0].startswith("-"):
        raise ConfigError(f"config: {_no_config(others[0])}")
    if not options & {"--config", "-c", "--model", "--data", "--help", "-h", "--print_config"}:
        raise ConfigError(
            f"config: none is given: write grpo {subcommand} --config FILE.yaml, or the name of a shipped config, "
            "such as quickstart"
        )


def _no_config(given: str) -> str:
    """Why a word is not a config, and what was probably meant."""
    own = Path(given) / "config.yaml"
    if own.is_file():
        return f"{given} is the folder of a run: give its own config, {own}"
    if Path(given).is_dir():
        return f"{given} is a folder: give a YAML file"
    names = shipped_names()
    name = given.removesuffix(".yaml")
    near = difflib.get_close_matches(name, [*names, *(name.rpartition("/")[2] for name in names)], n=1)
    meant = next((name for name in names if near and name.endswith(near[0])), None)
    hint = f" (did you mean {meant}?)" if meant else ""
    return f"there is no file {given}{hint}: grpo configs lists those that are shipped"


def read_config_files(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Read every file that is given as ``--config``, in order.

    Raises:
        ConfigError: one does not exist, cannot be read as YAML, holds no keys, or has options of a class beside its
            class_path.
    """
    return [_read(file) for file in config_paths(arguments)]


def config_paths(arguments: Sequence[str]) -> list[Path]:
    """The files that are given as ``--config``, in order."""
    files = []
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c"):
            files.append(Path(value if equals else "".join(arguments[index + 1 : index + 2])))
    return files


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: {file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"config: {_no_config(str(file))}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"config: {_no_config(str(file))}") from error
    except OSError as error:
        raise ConfigError(f"config: {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be parsed")
        raise ConfigError(f"config: {file} is not valid YAML: {problem}{place}") from error
    if not isinstance(found, dict):
        what = "is empty" if found is None else f"holds a {type(found).__name__}"
        raise ConfigError(f"config: {file} {what}: it must hold keys, such as model, data and trainer")
    for key, name, options in _options_beside_class_path(found):
        raise ConfigError(
            f"{key}: put {' and '.join(options)} of {name} under init_args, beside class_path (in {file})"
        )
    return found


def _options_beside_class_path(found: Any, key: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Keys of the classes whose options are not under ``init_args``, with the class and these options."""
    if isinstance(found, list):
        for value in found:
            yield from _options_beside_class_path(value, key)
    if not isinstance(found, dict):
        return
    beside = [str(name) for name in found if name not in ("class_path", "init_args", "dict_kwargs")]
    if "class_path" in found and beside:
        yield key, str(found["class_path"]).rpartition(".")[2], beside
    for name, value in found.items():
        yield from _options_beside_class_path(value, key if name == "init_args" else f"{key}.{name}".strip("."))
