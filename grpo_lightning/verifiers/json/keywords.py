"""The keywords of JSON Schema: which can refuse a document, in which drafts, and where they hold further schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from grpo_lightning.verifiers.json.reader import Json

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_NEVER = 100
DRAFT_OF = {"04": 4, "06": 6, "07": 7, "2019-09": 8, "2020-12": 9}
# The keywords that can refuse a document, the drafts that they first and last belong to, and the types of their values.
KEYWORDS: dict[str, tuple[int, int, tuple[type, ...]]] = {
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
# The kinds of values: every document is of exactly one.
KINDS = ("array", "boolean", "null", "number", "object", "string")
# The keywords that say something about values of one kind only.
KIND_OF: dict[str, str] = {
    **dict.fromkeys(("required", "properties", "patternProperties", "additionalProperties", "propertyNames"), "object"),
    **dict.fromkeys(("minProperties", "maxProperties", "unevaluatedProperties"), "object"),
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), "object"),
    **dict.fromkeys(("items", "additionalItems", "prefixItems", "contains", "unevaluatedItems"), "array"),
    **dict.fromkeys(("minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "number"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
}

# Where schemas are inside of the value of a keyword: in an object by name, in a list, or the value is one.
NAMED = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = (
    *("not", "if", "then", "else", "items", "contains", "propertyNames"),
    *("additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems"),
)


def asserted_keywords(schema: dict[str, Json], draft: int | None = None) -> list[str]:
    """The keywords of a schema that can refuse a document, whatever their values; its draft is its own by default."""
    draft = draft_of(schema) if draft is None else draft
    names = [
        name
        for name, (first, last, types) in KEYWORDS.items()
        if name in schema and first <= draft <= last and isinstance(schema[name], types)
    ]
    if "$ref" in names and draft <= DRAFT_OF["07"]:
        # Keywords beside a reference do not count there.
        return ["$ref"]
    is_wrapper = isinstance(schema.get("type"), str) and schema["type"] not in TYPES
    return [name for name in names if name != "type" or not is_wrapper]


def draft_of(schema: Json) -> int:
    uri = schema.get("$schema") if isinstance(schema, dict) else None
    match = re.search(r"draft[-/](0[467]|2019-09|2020-12)", uri) if isinstance(uri, str) else None
    return DRAFT_OF[match[1]] if match else max(DRAFT_OF.values())


def parts(keyword: str, value: Json) -> list[Json]:
    """The schemas inside of the value of a keyword."""
    if keyword in NAMED and isinstance(value, dict):
        return list(value.values())
    if keyword in LISTED and isinstance(value, list):
        return value
    return [value] if keyword in SINGLE else []


def nodes(schema: Json) -> Iterator[dict[str, Json]]:
    """A schema, the schemas inside of it, and those that its references lead to, each once."""
    waiting, seen = [schema], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        for name, value in node.items():
            waiting += parts(name, value)
        if isinstance(node.get("$ref"), str):
            waiting.append(at_pointer(schema, node["$ref"]))


def at_pointer(root: Json, reference: str) -> Json | None:
    """The part of a schema that a reference such as ``#/$defs/a`` leads to, or ``None`` where there is none."""
    node = root
    uri, _, pointer = unquote(reference).partition("#")
    if uri or (pointer and not pointer.startswith("/")):
        return None
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node
