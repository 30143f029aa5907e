"""Templates of prompts and answers: text with ``{names}`` that stand for a row's values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from grpo_lightning.errors import ConfigError

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def fields(template: str) -> set[str]:
    """Return the names in a template."""
    return {match[1] for match in _FIELD.finditer(template) if match[1]}


def checked_fields(template: str, key: str) -> set[str]:
    """Return the names in a template, which is the value of the option ``key``.

    Raises:
        ConfigError: the template has an unmatched brace, so a name would be taken for plain text.
    """
    # An empty pair, as in LaTeX's boxed{}, is always plain text.
    unmatched = re.search(r"[{}]", _FIELD.sub("", template).replace("{}", ""))
    if unmatched:
        brace = unmatched[0]
        raise ConfigError(
            f"{key}: {template!r} has a single {brace!r}; close the braces around a name, or write {2 * brace!r} for "
            "a literal brace"
        )
    return fields(template)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put values into a template in one pass, so that braces in a value are plain text.

    >>> fill("{{{set}}} and {n}", {"set": "{n}", "n": 1})
    '{{n}} and 1'
    """
    return _FIELD.sub(lambda match: _text(values[match[1]]) if match[1] else match[0][0], template)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
