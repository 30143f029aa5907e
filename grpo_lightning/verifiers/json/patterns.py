"""Patterns with look-around and back-references, which no engine matches in linear time: in a bounded number of steps.

The bound counts steps, not time, so a verdict depends on the document alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from grpo_lightning.verifiers.json.ecma import rewritten
from grpo_lightning.verifiers.json.reader import SHALLOW, Json, parse, strings

if TYPE_CHECKING:
    from jsonschema_rs import FancyRegexOptions, RegexOptions, Validator

# A step back may cost a pass over the string, about 4 ns per character, and every character one without a step back,
# about 1 ns: 0.2 s for each of the two, whatever a document holds.
_MAX_STEPS_TIMES_CHARS = 50_000_000
_MAX_SQUARED_CHARS = 200_000_000
# More steps than any string may take after check(): where the schema itself is tried, it never gets there.
_UNREACHED = 2 * _MAX_STEPS_TIMES_CHARS


class TooComplicated(ValueError):
    """A pattern with look-around or back-references takes too many steps on a document."""


def linear() -> RegexOptions:
    """The engine that takes time linear in the text, and refuses what it cannot match so."""
    import jsonschema_rs

    return jsonschema_rs.RegexOptions()


def backtracking(limit: int = _UNREACHED) -> FancyRegexOptions:
    """The engine that takes look-around and back-references. What needs neither, it matches in linear time."""
    import jsonschema_rs

    return jsonschema_rs.FancyRegexOptions(backtrack_limit=limit)


def backtracking_patterns(schemas: list[Json]) -> tuple[str, ...]:
    """The patterns in schemas that the linear engine refuses, and perhaps strings that only look like patterns."""
    found: dict[str, None] = {}
    waiting = list(schemas)
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            named = node.get("patternProperties")
            candidates = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
            found.update((one, None) for one in candidates if isinstance(one, str) and _is_backtracking(one))
            waiting += node.values()
    return tuple(found)


def read_schema(text: str) -> Json:
    """The schema that a JSON text is, its patterns in the syntax of the engines.

    Raises:
        NotJSON: the text is not JSON, or nested too deeply for a schema.
    """
    return rewritten(parse(text, SHALLOW).value)


def check(document: Json, patterns: tuple[str, ...]) -> None:
    """Try all patterns on all strings and keys of a document, wherever the schema would try them.

    The library itself takes a pattern that ran out of steps for one that does not match, and a ``not`` turns that into
    a match. So all of them are tried before.

    Raises:
        TooComplicated: the steps that a document may take, one bound for all of it, do not suffice.
    """
    texts = set(strings(document))
    chars = len(patterns) * (1 + sum(map(len, texts)))
    if len(patterns) * sum(len(text) ** 2 for text in texts) > _MAX_SQUARED_CHARS:
        raise TooComplicated
    # A power of 2, so that few validators are compiled.
    limit = 1 << (max(_MAX_STEPS_TIMES_CHARS // chars, 1).bit_length() - 1)
    for pattern in patterns:
        validator = _pattern_validator(pattern, limit)
        for text in texts:
            if not validator.is_valid(text) and _ran_out(validator, text):
                raise TooComplicated


def _ran_out(validator: Validator, text: str) -> bool:
    from jsonschema_rs import ValidationErrorKind

    return any(
        isinstance(error.kind, ValidationErrorKind.BacktrackLimitExceeded) for error in validator.iter_errors(text)
    )


@lru_cache(maxsize=256)
def _pattern_validator(pattern: str, limit: int) -> Validator:
    return _compile(pattern, backtracking(limit))


def _compile(pattern: str, options: Any) -> Validator:
    import jsonschema_rs

    return jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=options)


def _is_backtracking(pattern: str) -> bool:
    if not re.search(r"\(\?[=!<]|\\[1-9k]", pattern):
        return False
    try:
        _compile(pattern, linear())
    except ValueError:
        pass
    else:
        return False
    try:
        _compile(pattern, backtracking())
    except ValueError:
        return False
    return True
