"""What a run does not write about itself: keys, tokens and passwords."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

SECRET = r"(?:[\w.-]*[_.-])?(?:api)?(?:key|token|password|secret)"
"""Names of options whose values nobody else should read; ``max_tokens`` is none."""

_IN_A_CONFIG = re.compile(
    r"(\w+_)?(api|access|auth|private|secret)_?key|((api|access|auth|bearer|hf|hub|session)_?)?token|"
    r"(\w+_)?(password|passwd|secret)|authorization",
    re.IGNORECASE,
)
"""Names of such options within a config: narrower, since one that is lost there changes what the config asks for."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
"""The name and password of ``https://name:password@host``."""


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments with ``***`` for the values of keys, tokens and passwords, given as options or within YAML."""
    shown = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        argument = _CREDENTIALS.sub("***@", argument)
        if re.fullmatch(SECRET, before, re.IGNORECASE) and before.startswith("--"):
            shown.append("***")
        else:
            shown.append(
                re.sub(rf"(?<![\w.])({SECRET}[\"']?\s*[:=]\s*)[^\s,}}]+", r"\1***", argument, flags=re.IGNORECASE)
            )
    return shown


def remove_secrets(config: Any) -> list[str]:
    """Set the values of keys, tokens and passwords in a config to null, and drop those within addresses.

    Args:
        config: namespaces, dicts and lists; changed here.

    Returns:
        The keys that were changed.
    """
    return list(_removed(config, ""))


def _removed(config: Any, place: str) -> Iterator[str]:
    if isinstance(config, list):
        entries: Any = list(enumerate(config))
    else:
        config = config if isinstance(config, dict) else getattr(config, "__dict__", {})
        entries = list(config.items())
    for name, value in entries:
        key = f"{place}.{name}".strip(".")
        if isinstance(value, str):
            public = None if _IN_A_CONFIG.fullmatch(str(name)) else _CREDENTIALS.sub("", value)
            if public != value:
                config[name] = public
                yield key
        else:
            yield from _removed(value, key)
