"""What a row gives as its schema: unwrapped from a vendor's request, and refused if it constrains nothing."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers.json.documents import Documents
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
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_NEVER = 100
# The keywords that can refuse a document, the drafts that they first and last belong to, and the types of their values.
_DRAFT_OF = {"04": 4, "06": 6, "07": 7, "2019-09": 8, "2020-12": 9}
_KEYWORDS: dict[str, tuple[int, int, tuple[type, ...]]] = {
    **dict.fromkeys(("type",), (4, _NEVER, (str, list))),
    **dict.fromkeys(("enum", "required", "allOf", "anyOf", "oneOf"), (4, _NEVER, (list,))),
    **dict.fromkeys(("properties", "patternProperties"), (4, _NEVER, (dict,))),
    **dict.fromkeys(("not", "additionalProperties"), (4, _NEVER, (dict, bool))),
    "items": (4, _NEVER, (dict, bool, list)),
    "additionalItems": (4, 8, (dict, bool)),
    "pattern": (4, _NEVER, (str,)),
    "format": (4, _NEVER, (str,)),
    "uniqueItems": (4, _NEVER, (bool,)),
    **dict.fromkeys(("multipleOf", "minimum", "maximum"), (4, _NEVER, (int, float))),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (4, _NEVER, (int, float))),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (4, _NEVER, (int, float))),
    **dict.fromkeys(("minProperties", "maxProperties"), (4, _NEVER, (int, float))),
    "$ref": (4, _NEVER, (str,)),
    "dependencies": (4, _NEVER, (dict,)),
    "const": (6, _NEVER, (object,)),
    **dict.fromkeys(("contains", "propertyNames"), (6, _NEVER, (dict, bool))),
    "if": (7, _NEVER, (dict, bool)),
    **dict.fromkeys(("dependentRequired", "dependentSchemas"), (8, _NEVER, (dict,))),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), (8, _NEVER, (dict, bool))),
    "$recursiveRef": (8, 8, (str,)),
    "$dynamicRef": (9, _NEVER, (str,)),
    "prefixItems": (9, _NEVER, (list,)),
}
# Words that schemas use and that look like keywords.
_NO_MISTAKES = {
    "example",
    "examples",
    "definitions",
    "$defs",
    "then",
    "else",
    "id",
    "$id",
    "minContains",
    "maxContains",
}
# These are near to words of other meanings: cost, form.
_TOO_NEAR = {"const", "format"}
# Shorter words are near to too many others. The cutoff lets pass "tpye" and "property", but not "parameters".
_SHORTEST_MISTAKE = 4
_NEAR = 0.75
_MAX_REFERENCES = 100


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
    while isinstance(schema, dict) and not _asserted_keywords(schema):
        inner = [name for name, value in schema.items() if isinstance(value, dict) and name not in _BESIDE]
        if (
            len(inner) != 1
            or inner[0] not in _WRAPPERS
            or any(v in _TYPES for name, v in schema.items() if isinstance(v, str) and name != "description")
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
    if any(target not in (None, "#") for target in _recursive_targets(schema)):
        raise ValueError("the schema has a $recursiveRef that is not '#': use $ref for anything else")
    for name, keyword in _misspelled(schema):
        raise ValueError(f"the schema has an unknown keyword {name!r}: did you mean {keyword!r}?")
    if not _constrains(schema, schema, check_formats, _MAX_REFERENCES):
        raise ValueError(
            "the schema constrains nothing, so every JSON document would fit it: nothing is asserted by "
            + (", ".join(map(repr, schema)))[:200]
        )


def _asserted_keywords(schema: dict[str, Json]) -> list[str]:
    """The keywords that can refuse a document, whatever their values."""
    draft = _draft(schema)
    names = [
        name
        for name, (first, last, types) in _KEYWORDS.items()
        if name in schema and first <= draft <= last and isinstance(schema[name], types)
    ]
    if "$ref" in names and draft <= _DRAFT_OF["07"]:
        # Keywords beside a reference do not count there.
        return ["$ref"]
    is_wrapper = isinstance(schema.get("type"), str) and schema["type"] not in _TYPES
    return [name for name in names if name != "type" or not is_wrapper]


def _draft(schema: Json) -> int:
    uri = schema.get("$schema") if isinstance(schema, dict) else None
    match = re.search(r"draft[-/](0[467]|2019-09|2020-12)", uri) if isinstance(uri, str) else None
    return _DRAFT_OF[match[1]] if match else max(_DRAFT_OF.values())


def _constrains(node: Json, root: Json, check_formats: bool, references: int) -> bool:
    """Whether there may be a document that a part of a schema refuses. Where it is not certain: yes."""
    if not isinstance(node, dict):
        return node is False
    # Only the root says which draft it is.
    draft = {"$schema": root["$schema"]} if isinstance(root, dict) and "$schema" in root else {}

    def inner(part: Json) -> bool:
        return _constrains(part, root, check_formats, references)

    def asserts(keyword: str, value: Json) -> bool:
        if keyword in ("allOf", "prefixItems") or (keyword == "items" and isinstance(value, list)):
            return any(map(inner, value))
        if keyword == "anyOf":
            return all(map(inner, value))
        if keyword == "oneOf":
            return len(value) > 1 or any(map(inner, value))
        if keyword in ("properties", "patternProperties", "dependentSchemas"):
            return any(map(inner, value.values()))
        if keyword in ("items", "additionalItems", "additionalProperties", "propertyNames"):
            return inner(value)
        if keyword in ("unevaluatedProperties", "unevaluatedItems"):
            return inner(value)
        if keyword == "if":
            return any(inner(node.get(branch, True)) for branch in ("then", "else"))
        if keyword == "not":
            return value is not False
        if keyword == "contains":
            return node.get("minContains") != 0 or "maxContains" in node
        if keyword in ("required", "dependencies", "dependentRequired", "uniqueItems", "minLength", "minItems"):
            return bool(value)
        if keyword == "minProperties":
            return bool(value)
        if keyword == "format":
            return check_formats
        if keyword == "$ref" and value.startswith("#"):
            target = _referred(root, value)
            return target is None or references == 0 or _constrains(target, root, check_formats, references - 1)
        return True

    return any(asserts(keyword, node[keyword]) for keyword in _asserted_keywords({**node, **draft}))


def _referred(root: Json, reference: str) -> Json | None:
    """The part of a schema that a JSON pointer leads to, or ``None`` if it is not as simple as that."""
    node = root
    for step in reference.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return node if reference.startswith("#/") else None


def _misspelled(schema: Json) -> Iterator[tuple[str, str]]:
    """The unknown keywords of a schema that look like a known one, with that one."""
    for node in _nodes(schema):
        for name, value in node.items():
            keyword = _meant(name)
            if keyword is not None and isinstance(value, _KEYWORDS[keyword][2]):
                yield name, keyword


def _recursive_targets(schema: Json) -> Iterator[Json]:
    """What each part of a schema of draft 2019-09 refers to by ``$recursiveRef``: the draft allows ``#`` alone."""
    if _draft(schema) == _DRAFT_OF["2019-09"]:
        yield from (node.get("$recursiveRef") for node in _nodes(schema))


def _nodes(schema: Json) -> Iterator[dict[str, Json]]:
    """A schema and the schemas inside of it."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            for name, value in node.items():
                waiting += _parts(name, value)


def _parts(keyword: str, value: Json) -> list[Json]:
    """The schemas inside of the value of a keyword."""
    if keyword in ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"):
        return list(value.values()) if isinstance(value, dict) else []
    if keyword in ("allOf", "anyOf", "oneOf", "prefixItems", "items") and isinstance(value, list):
        return value
    if keyword in ("not", "if", "then", "else", "items", "contains", "additionalProperties", "additionalItems"):
        return [value]
    return []


def _meant(name: str) -> str | None:
    """The keyword that a name is a misspelling of: another case or underscores, or a letter or two."""
    if name in _KEYWORDS or name in _NO_MISTAKES or name.startswith(("x-", "$")):
        return None
    plain = name.replace("_", "").replace("-", "").lower()
    for keyword in _KEYWORDS:
        if plain == keyword.lower():
            return keyword
    near = [keyword for keyword in _KEYWORDS if min(len(keyword), len(name)) >= _SHORTEST_MISTAKE]
    found = difflib.get_close_matches(name, near, 1, _NEAR)
    return found[0] if found and found[0] not in _TOO_NEAR else None


def _from_openapi(node: Json) -> Json:
    """A schema of OpenAPI 3.0 in JSON Schema's words: types in small letters, ``nullable`` as a type."""
    if not isinstance(node, dict):
        return node
    schema = dict(node)
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() in _TYPES:
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
