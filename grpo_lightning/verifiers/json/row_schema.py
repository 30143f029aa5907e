"""What a row gives as its schema: unwrapped from a vendor's request, and refused if it constrains nothing."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers.json.constrains import constrains, refused_kinds
from grpo_lightning.verifiers.json.documents import Documents
from grpo_lightning.verifiers.json.keywords import DRAFT_OF, KINDS, draft_of, nodes
from grpo_lightning.verifiers.json.misspelled import misspelled
from grpo_lightning.verifiers.json.reader import SHALLOW, Json, NotJSON, parse, write
from grpo_lightning.verifiers.json.rules import Schema, compile_schema
from grpo_lightning.verifiers.json.vendors import unwrap as unwrap

# What vendors take as a format without a schema.
_NO_SCHEMA = ({"type": "json_object"}, {"type": "text"}, {"response_format": {"type": "json_object"}})


class RowSchema(NamedTuple):
    """A row's schema, compiled, and whether it asks for any JSON on purpose: ``true`` or ``{}``."""

    schema: Schema
    takes_all: bool


@lru_cache(maxsize=256)
def read_row_schema(text: str, check_formats: bool, documents: Documents) -> RowSchema:
    """The schema that a row gives as JSON text, perhaps inside of a vendor's request; those used last are kept.

    Raises:
        ValueError: it is not a valid schema, or constrains nothing and is neither ``true`` nor ``{}``, or has a
            misspelled keyword.
    """
    try:
        given = parse(text, SHALLOW).value
    except NotJSON as refusal:
        raise ValueError(f"the schema is not valid JSON: {refusal}") from refusal
    schema = unwrap(given)
    if not isinstance(schema, (dict, bool)):
        kind = "a list" if isinstance(schema, list) else "a value"
        raise ValueError(f"the schema cannot be used: it must be an object, and is {kind}")
    if schema in _NO_SCHEMA:
        raise ValueError(f"the schema is a request for {json.dumps(schema)}, without a schema in it")
    compiled = compile_schema(text if schema is given else json.dumps(schema), check_formats, documents)
    takes_all = schema is True or (isinstance(schema, dict) and not schema.keys() - {"$schema"})
    if not takes_all:
        check_constrains(schema, check_formats, documents)
    return RowSchema(compiled, takes_all)


def json_text(value: object, what: str) -> str:
    """A JSON text as it is, anything else written as one.

    Raises:
        ValueError: it cannot be written; the message calls it ``what``.
    """
    if isinstance(value, str):
        return value
    try:
        return write(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error


def configured_schema(schema: dict | str, owner: str) -> str:
    """The text of a schema that an option ``schema`` gives, as an object or the path of a file.

    Raises:
        ValueError: it is not JSON.
        ConfigError: the file cannot be read; the message names ``owner``, the class that has the option.
    """
    if isinstance(schema, dict):
        return json_text(schema, "the option 'schema'")
    try:
        return Path(schema).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{owner}: the option 'schema' names a file that cannot be read: {error}") from error


def check_constrains(schema: Json, check_formats: bool, documents: Documents = ()) -> None:
    """Refuse a schema that constrains nothing, or has a misspelled keyword.

    Raises:
        ValueError: every document fits it, or none, or a keyword is misspelled.
    """
    is_2019 = draft_of(schema) == DRAFT_OF["2019-09"]
    if is_2019 and any(node.get("$recursiveRef") not in (None, "#") for node in nodes(schema)):
        raise ValueError("the schema has a $recursiveRef that is not '#': use $ref for anything else")
    for name, keyword in misspelled(schema):
        raise ValueError(f"the schema has an unknown keyword {name!r}: did you mean {keyword!r}?")
    if not constrains(schema, check_formats, documents):
        raise ValueError(
            "the schema constrains nothing, so every JSON document would fit it: nothing is asserted by "
            + (", ".join(map(repr, schema)))[:200]
        )
    if len(refused_kinds(schema, check_formats, documents)) == len(KINDS):
        raise ValueError("the schema refuses every JSON document: its keywords contradict each other")
