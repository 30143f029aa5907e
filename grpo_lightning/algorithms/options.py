"""Checks of a module's options, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from grpo_lightning.errors import ConfigError


def check_options(checks: Mapping[str, tuple[bool, str]]) -> None:
    """Check options of ``model``.

    Args:
        checks: per option name, whether its value is valid, and the message of the error if not.

    Raises:
        ConfigError: the first invalid option, in one sentence.
    """
    for name, (is_valid, message) in checks.items():
        if not is_valid:
            raise ConfigError(f"model.{name}: {message}")


def one_of(value: str, choices: Any) -> tuple[bool, str]:
    """The check of an option that must have one of several values.

    Args:
        value: the option's value.
        choices: the ``Literal`` type of the option.
    """
    names = get_args(choices)
    return value in names, f"must be one of {', '.join(names)}, not {value!r}"
