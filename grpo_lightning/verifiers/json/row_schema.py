"""What a row gives as its schema: unwrapped from a vendor's request, and refused if it constrains nothing."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers.json.constrains import constrains
from grpo_lightning.verifiers.json.documents import Documents
from grpo_lightning.verifiers.json.keywords import DRAFT_OF, TYPES, asserted_keywords, draft_of, nodes
from grpo_lightning.verifiers.json.misspelled import misspelled
from grpo_lightning.verifiers.json.reader import SHALLOW, Json, NotJSON, parse, write
from grpo_lightning.verifiers.json.rules import Schema, compile_schema

# Where vendors' requests hold a schema.
_WRAPPERS = (
    "schema",  # OpenAI, inside of json_schema; vLLM and llama.cpp beside type: json_object; Anthropic's output_format
    *("response_format", "json_schema", "format"),  # OpenAI; Ollama's format
    *("function", "parameters", "parametersJsonSchema"),  # functions of OpenAI, Mistral, Gemini
    *("input_schema", "inputSchema", "outputSchema", "output_format", "output_config"),  # Anthropic, MCP
    *("toolSpec", "json"),  # Bedrock
    *("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema"),  # Gemini
    *("generationConfig", "generation_config"),
    *("structured_outputs", "guided_json"),  # vLLM
)
# What vendors put beside it, and is an object.
_BESIDE = {"annotations", "cache_control", "_meta"}
# Gemini's schemas are written in OpenAPI's dialect.
_OPENAPI = ("responseSchema", "response_schema")


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
    compiled = compile_schema(text if schema is given else json.dumps(schema), check_formats, documents)
    takes_all = schema is True or (isinstance(schema, dict) and not schema.keys() - {"$schema"})
    if not takes_all:
        check_constrains(schema, check_formats)
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


def unwrap(schema: Json) -> Json:
    """The schema inside of a vendor's request, or the schema itself if it is not wrapped.

    A wrapper has no keyword of JSON Schema (``type`` with a value that is not a JSON type, such as ``json_schema`` or
    ``function``, is none), exactly one member that vendors put a schema, or another wrapper, into, and beside it
    neither other objects nor names of types, but in a description: ``{"schema": {"type": "string"}, "name": "string"}``
    lists fields.
    """
    while isinstance(schema, dict) and not asserted_keywords(schema):
        inner = [name for name, value in schema.items() if isinstance(value, dict) and name not in _BESIDE]
        if (
            len(inner) != 1
            or inner[0] not in _WRAPPERS
            or any(v in TYPES for name, v in schema.items() if isinstance(v, str) and name != "description")
        ):
            break
        schema = schema[inner[0]]
        if inner[0] in _OPENAPI:
            schema = _from_openapi(schema)
    return schema


def check_constrains(schema: Json, check_formats: bool) -> None:
    """Refuse a schema that constrains nothing, or has a misspelled keyword.

    Raises:
        ValueError: every document fits it, or a keyword is misspelled.
    """
    is_2019 = draft_of(schema) == DRAFT_OF["2019-09"]
    if is_2019 and any(node.get("$recursiveRef") not in (None, "#") for node in nodes(schema)):
        raise ValueError("the schema has a $recursiveRef that is not '#': use $ref for anything else")
    for name, keyword in misspelled(schema):
        raise ValueError(f"the schema has an unknown keyword {name!r}: did you mean {keyword!r}?")
    if not constrains(schema, check_formats):
        raise ValueError(
            "the schema constrains nothing, so every JSON document would fit it: nothing is asserted by "
            + (", ".join(map(repr, schema)))[:200]
        )


def _from_openapi(node: Json) -> Json:
    """A schema of OpenAPI 3.0 in JSON Schema's words: types in small letters, ``nullable`` as a type."""
    if not isinstance(node, dict):
        return node
    schema = dict(node)
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() in TYPES:
        schema["type"] = [kind.lower(), "null"] if schema.get("nullable") is True else kind.lower()
    for keyword in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(keyword), dict):
            schema[keyword] = {name: _from_openapi(part) for name, part in schema[keyword].items()}
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(keyword), list):
            schema[keyword] = [_from_openapi(part) for part in schema[keyword]]
    for keyword in ("items", "additionalProperties", "not"):
        if keyword in schema:
            schema[keyword] = _from_openapi(schema[keyword])
    return schema
