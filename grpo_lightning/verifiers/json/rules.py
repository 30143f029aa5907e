"""Compiled JSON Schemas: whether a document fits, and if not, where and by which rule.

Built on nothing but the library's yes or no. Its error reports take exponential time on recursive schemas, and quote
the document and the values that the schema allows, which may be the gold answer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urljoin

from grpo_lightning.verifiers.json.constrains import refused_kinds
from grpo_lightning.verifiers.json.documents import Documents
from grpo_lightning.verifiers.json.engine import Engine, TooDeep, depth_noticed, on_large_stack, panics_raised
from grpo_lightning.verifiers.json.patterns import read_schema
from grpo_lightning.verifiers.json.reader import Json, NotJSON

if TYPE_CHECKING:
    from jsonschema_rs import Validator, ValidatorMap

# What the keywords ask for that can be judged without the rest of the schema. Never with their values: a schema with
# {"const": 42} contains the answer.
_RULES = {
    "type": "must be {types}",
    "const": "must be the value that the schema asks for",
    "enum": "must be one of the values that the schema allows",
    "required": "lacks a required property",
    "dependentRequired": "lacks a property that another one requires",
    "minimum": "must not be below the schema's minimum",
    "exclusiveMinimum": "must be above the schema's exclusiveMinimum",
    "maximum": "must not be above the schema's maximum",
    "exclusiveMaximum": "must be below the schema's exclusiveMaximum",
    "multipleOf": "must be a multiple of the schema's multipleOf",
    "minLength": "must not be shorter than the schema's minLength",
    "maxLength": "must not be longer than the schema's maxLength",
    "pattern": "must match the schema's pattern",
    "format": "must have the schema's format",
    "minItems": "must not have fewer items than the schema's minItems",
    "maxItems": "must not have more items than the schema's maxItems",
    "uniqueItems": "must not have the same item twice",
    "minProperties": "must not have fewer properties than the schema's minProperties",
    "maxProperties": "must not have more properties than the schema's maxProperties",
}
# The rest: rules about several parts of the schema at once. No part of the document can be named for them.
_COMBINED = {
    "anyOf": "must fit one of the schema's alternatives (anyOf)",
    "oneOf": "must fit exactly one of the schema's alternatives (oneOf)",
    **{
        keyword: f"breaks the schema's rule {keyword}"
        for keyword in (
            *("$ref", "$dynamicRef", "not", "contains", "propertyNames", "dependentSchemas", "dependencies"),
            *("unevaluatedProperties", "unevaluatedItems"),
        )
    },
}
_OTHER_RULE = "does not fit the schema"
_NAMES = {"array": "an array", "integer": "an integer", "object": "an object", "null": "null"}

_MAX_PATH_STEPS = 8
_MAX_KEY_CHARS = 40
# Steps of one explanation: a step costs time linear in the document's length, and a schema may refer to itself.
_MAX_STEPS = 500
_MAX_STEPS_TIMES_CHARS = 2_000_000
_IDENTIFIER = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{_MAX_KEY_CHARS - 1}}}")


class Problem(NamedTuple):
    """Where a document breaks the schema, and how.

    Args:
        path: the place, in the document's own keys: ``$.items[2].price``.
        rule: what is wrong there, without any value of the schema: ``must be a number``.
        missing: the property that is missing there, if that is the problem.
    """

    path: str
    rule: str
    missing: str = ""

    def text(self, name_missing: bool) -> str:
        """``$.items[2].price: must be a number``, with or without the name of a missing property."""
        return f"{self.path}: {self.rule}" + (f" {_quoted(self.missing)}" if self.missing and name_missing else "")


@lru_cache(maxsize=256)
def compile_schema(text: str, check_formats: bool, documents: Documents = (), uri: str = "") -> Schema:
    """The schema written in a JSON text; the schemas used last are kept.

    Args:
        text: the schema.
        check_formats: whether ``format`` is checked.
        documents: what its references may lead to, besides itself.
        uri: what its references are relative to, where it has no ``$id``.

    Raises:
        ValueError: it is not a valid schema, or refers to a document that is not registered.
    """
    return Schema(text, check_formats, documents, uri)


class Schema:
    """One compiled schema. Its references lead to itself or to registered documents: nothing is ever fetched.

    ``text`` is how it is written, and ``root`` the schema as an object, true or false.
    """

    @panics_raised()
    def __init__(self, text: str, check_formats: bool, documents: Documents = (), uri: str = "") -> None:
        self._check_formats = check_formats
        self._documents = documents
        self._uri = uri
        self.text = text
        try:
            self.root = read_schema(text)
            self._engine = Engine(self.root, check_formats, documents, uri)
        except NotJSON as refusal:
            raise ValueError(f"the schema is not valid JSON: {refusal}") from refusal
        except ValueError as error:
            raise ValueError(f"the schema cannot be used: {str(error)[:300]}") from error

    def fits(self, document: Json, deep: bool = False) -> bool:
        """Whether a document fits; ``deep`` if it is nested more than ``SHALLOW`` deep.

        Raises:
            ValueError: the schema refers to a document that is not registered, and this one depends on it.
            TooComplicated: a pattern takes too many steps.
            TooDeep: items that must be unique are nested too deeply.
        """
        with panics_raised():
            if deep:
                return on_large_stack(lambda: self._engine.fits(document))
            return self._engine.fits(document)

    def takes_kind(self, text: str) -> bool:
        """Whether the schema may take an array or object written so."""
        return ("array" if text.startswith("[") else "object") not in self._refused_kinds

    def problem(self, document: Json, chars: int, deep: bool = False) -> Problem:
        """A problem of a document that does not fit, and that ``chars`` characters were written for.

        Follows one path through the schema, so it is quick on any. Where the way gets too long, it stops half-way.
        """
        try:
            with panics_raised(), depth_noticed():
                if deep:
                    return on_large_stack(lambda: self._problem(document, chars))
                return self._problem(document, chars)
        except TooDeep:
            return Problem(spelled([]), _OTHER_RULE)

    def _problem(self, document: Json, chars: int) -> Problem:
        path: list[str | int] = []
        schema, pointer = self, "#"
        for _ in range(min(_MAX_STEPS, _MAX_STEPS_TIMES_CHARS // chars)):
            node = _at(schema.root, pointer)
            if node is False:
                return Problem(spelled(path), "is not allowed")
            # Below a separate $id, references have another meaning.
            if not isinstance(node, dict) or ("$id" in node and pointer != "#"):
                break
            keyword = schema._broken_alone(node, document)
            if keyword is not None:
                missing = [name for name in node["required"] if name not in document] if keyword == "required" else []
                return Problem(spelled(path), _RULES[keyword].format(types=_types(node)), *missing[:1])
            part = schema._broken_part(node, pointer, document)
            if part is None:
                combined = [keyword for keyword in _COMBINED if keyword in node]
                rule = _COMBINED[combined[0]] if len(combined) == 1 else _OTHER_RULE
                return Problem(spelled(path), rule)
            schema, pointer, key = part
            if key is not None:
                path.append(key)
                document = document[key]
        return Problem(spelled(path), _OTHER_RULE)

    def _broken_alone(self, node: dict[str, Json], document: Json) -> str | None:
        """The first of the rules that can be judged alone and that the document breaks."""
        # Keywords beside a reference do not count in draft 7.
        rules = {} if "$ref" in node else {keyword: node[keyword] for keyword in _RULES if keyword in node}
        # Each with the ones before it, since in draft 4 exclusiveMinimum belongs to minimum.
        so_far: dict[str, Json] = {}
        for keyword, value in rules.items():
            so_far[keyword] = value
            if not self._compile(so_far).is_valid(document):
                return keyword
        return None

    def _compile(self, rules: dict[str, Json]) -> Validator:
        """Some rules alone, in the draft of the schema."""
        draft = {keyword: self.root[keyword] for keyword in ("$schema",) if keyword in self.root}
        return self._engine.compile({**draft, **rules})

    def _broken_part(
        self, node: dict[str, Json], pointer: str, document: Json
    ) -> tuple[Schema, str, str | int | None] | None:
        """The first part that is not fitted: its schema, its pointer, and the key of the member it is about, if any."""
        reference = node.get("$ref")
        if isinstance(reference, str):
            schema, where = self._referred(reference)
            if schema is not None and schema._unfitted(where, document):
                return schema, where, None
        for part, key in itertools.chain(
            self._whole_parts(node, pointer, document), self._member_parts(node, document)
        ):
            where = f"{pointer}/{part}"
            if self._unfitted(where, document if key is None else document[key]):
                return self, where, key
        return None

    def _unfitted(self, pointer: str, document: Json) -> bool:
        validator = self._parts.get(pointer)
        return validator is not None and not validator.is_valid(document)

    def _referred(self, reference: str) -> tuple[Schema | None, str]:
        """The schema that a reference leads to, this one or a registered one, and the pointer into it."""
        uri, _, fragment = reference.partition("#")
        pointer = f"#{unquote(fragment)}"
        if not uri:
            return self, pointer
        own = self.root.get("$id", "") if isinstance(self.root, dict) else ""
        uri = urljoin(urljoin(self._uri, own), uri)
        text = dict(self._documents).get(uri)
        if text is None:
            return None, pointer
        return compile_schema(text, self._check_formats, self._documents, uri), pointer

    def _whole_parts(self, node: dict[str, Json], pointer: str, document: Json) -> Iterator[tuple[str, None]]:
        """The parts of the schema that must be fitted by the whole document."""
        for index in range(len(node.get("allOf", []))):
            yield f"allOf/{index}", None
        for choice in ("anyOf", "oneOf"):
            # What is optional is written as a choice between a schema and null.
            rest = [index for index, part in enumerate(node.get(choice, [])) if part != {"type": "null"}]
            if len(rest) == 1:
                yield f"{choice}/{rest[0]}", None
        condition = self._parts.get(f"{pointer}/if")
        if condition is not None:
            yield "then" if condition.is_valid(document) else "else", None

    def _member_parts(self, node: dict[str, Json], document: Json) -> Iterator[tuple[str, str | int]]:
        """The parts of the schema that must be fitted by the members of an object or array, with their keys."""
        if isinstance(document, dict):
            patterns = {name: self._compile({"pattern": name}) for name in node.get("patternProperties", {})}
            for key in document:
                named = [f"properties/{_escaped(key)}"] if key in node.get("properties", {}) else []
                named += [f"patternProperties/{_escaped(name)}" for name in patterns if patterns[name].is_valid(key)]
                for part in named or ["additionalProperties"]:
                    yield part, key
        elif isinstance(document, list):
            first, rest = (
                ("items", "additionalItems") if isinstance(node.get("items"), list) else ("prefixItems", "items")
            )
            for index in range(len(document)):
                yield f"{first}/{index}" if index < len(node.get(first, [])) else rest, index

    @cached_property
    def _refused_kinds(self) -> frozenset[str]:
        return refused_kinds(self.root, self._check_formats, self._documents)

    @cached_property
    def _parts(self) -> ValidatorMap:
        """Every part of the schema, compiled, by its JSON pointer."""
        return self._engine.parts()


def _at(root: Json, pointer: str) -> Json:
    """The part of a schema that a JSON pointer leads to."""
    node = root
    for step in pointer.split("/")[1:]:
        node = node[int(step)] if isinstance(node, list) else node[step.replace("~1", "/").replace("~0", "~")]
    return node


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _types(node: dict[str, Json]) -> str:
    types = node.get("type", [])
    if types in ("null", ["null"]):
        # That is a value.
        return "of the schema's type"
    return " or ".join(_NAMES.get(name, f"a {name}") for name in ([types] if isinstance(types, str) else types))


def spelled(path: list[str | int]) -> str:
    """``$.items[2].price``. The keys are the model's own text, so they are escaped and cut."""
    spelled = "$"
    for step in path[:_MAX_PATH_STEPS]:
        if isinstance(step, int):
            spelled += f"[{step}]"
        else:
            spelled += f".{step}" if _IDENTIFIER.fullmatch(step) else f"[{_quoted(step)}]"
    return spelled + ("..." if len(path) > _MAX_PATH_STEPS else "")


def _quoted(key: str) -> str:
    return json.dumps(key if len(key) <= _MAX_KEY_CHARS else key[:_MAX_KEY_CHARS] + "...")
