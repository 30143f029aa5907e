"""Whether a schema constrains anything: a schema that every document fits makes a row that pays for anything."""

from __future__ import annotations

import re
from typing import Any

from grpo_lightning.verifiers.json.documents import Documents
from grpo_lightning.verifiers.json.keywords import (
    DRAFT_OF,
    KIND_OF,
    KINDS,
    asserted_keywords,
    at_pointer,
    draft_of,
    nodes,
)
from grpo_lightning.verifiers.json.reader import Json, parse

# Schemas looked at, the same one again after each reference to it. What takes more is taken to constrain.
_MAX_STEPS = 20_000
_MAX_DEPTH = 120
_KIND_OF_VALUE: dict[type, str] = dict(
    zip((list, bool, type(None), int, float, dict, str), (*KINDS[:4], *KINDS[3:]), strict=True)
)
# No known format has a text like this one.
_NO_FORMAT = " [%{\\"
# What ties a pattern to a place, and what Python reads in another way.
_PLACED = re.compile(r"[$^]|\\[bBAZzG]|\(\?[=!<]|\{,|\[\]")
_ALL_TEXTS = {r"^[\s\S]*$", r"^(.|\n)*$", r"^(?:.|\n)*$", r"^[\w\W]*$", r"^[\d\D]*$"}


def constrains(schema: Json, check_formats: bool, documents: Documents = ()) -> bool:
    """Whether there may be a document that a schema refuses. Where it is not certain: yes."""
    analysis = _Analysis(schema, check_formats, dict(documents))
    return not all(analysis.takes_all(schema, kind) for kind in KINDS)


def refused_kinds(schema: Json, check_formats: bool, documents: Documents = ()) -> frozenset[str]:
    """The kinds of values that a schema certainly refuses."""
    analysis = _Analysis(schema, check_formats, dict(documents))
    return frozenset(kind for kind in KINDS if analysis.takes_none(schema, kind))


class _Analysis:
    """What a schema certainly takes or refuses, kind of value by kind of value."""

    def __init__(self, root: Json, check_formats: bool, documents: dict[str, str]) -> None:
        self._root = root
        self._documents = documents
        self._check_formats = check_formats
        self._draft = draft_of(root)
        self._steps = self._depth = 0
        # The references that are being followed, with the question. One that leads back to itself asserts nothing.
        self._open: set[tuple[int, str, bool]] = set()
        # Inside of another $id, references have another meaning.
        is_base = [isinstance(node.get("$id"), str) and not node["$id"].startswith("#") for node in nodes(root)]
        self._one_base = not any(is_base[1:])

    def takes_all(self, node: Json, kind: str) -> bool:
        """Whether every value of a kind certainly fits a part of the schema."""
        return self._is_certain(node, kind, True)

    def takes_none(self, node: Json, kind: str) -> bool:
        """Whether certainly no value of a kind fits a part of the schema."""
        return self._is_certain(node, kind, False)

    def _is_certain(self, node: Json, kind: str, takes: bool) -> bool:
        self._steps += 1
        if self._steps > _MAX_STEPS or self._depth > _MAX_DEPTH:
            return False
        if not isinstance(node, dict):
            return node is takes
        self._depth += 1
        try:
            keywords = asserted_keywords(node, self._draft)
            if takes:
                own = [keyword for keyword in keywords if KIND_OF.get(keyword, kind) == kind]
                return all(self._asserts_nothing(node, keyword, kind) for keyword in own)
            return any(self._refuses_all(node, keyword, kind) for keyword in keywords)
        finally:
            self._depth -= 1

    def _takes_any(self, node: Json) -> bool:
        return all(self.takes_all(node, kind) for kind in KINDS)

    def _asserts_nothing(self, node: dict[str, Json], keyword: str, kind: str) -> bool:
        value: Any = node[keyword]
        match keyword:
            case "type":
                return kind in ([value] if isinstance(value, str) else value)
            case "enum" | "const":
                return _covers(value if keyword == "enum" else [value], kind)
            case "not":
                return self.takes_none(value, kind)
            case "allOf":
                return all(self.takes_all(part, kind) for part in value)
            case "anyOf":
                # Each part alone must take all: {"minimum": 1} and {"maximum": 1} are not seen through.
                return any(self.takes_all(part, kind) for part in value)
            case "oneOf":
                takers = [part for part in value if not self.takes_none(part, kind)]
                return len(takers) == 1 and self.takes_all(takers[0], kind)
            case "if":
                return self._branches(node, kind, self.takes_all)
            case "properties" | "patternProperties":
                return all(map(self._takes_any, value.values()))
            case "dependentSchemas" | "dependencies" | "dependentRequired":
                return all(
                    not part if isinstance(part, list) else self.takes_all(part, kind) for part in value.values()
                )
            case "prefixItems" | "items" if isinstance(value, list):
                return all(map(self._takes_any, value))
            case "items" | "additionalItems" | "additionalProperties" | "unevaluatedItems" | "unevaluatedProperties":
                return self._takes_any(value)
            case "propertyNames":
                return self.takes_all(value, "string")
            case "contains":
                has_bounds = self._draft >= DRAFT_OF["2019-09"]
                return has_bounds and node.get("minContains") == 0 and "maxContains" not in node
            case "required" | "uniqueItems" | "minLength" | "minItems" | "minProperties":
                return not value
            case "pattern":
                return _matches_all(value)
            case "format":
                return not self._check_formats or self._is_unknown_format(value)
            case "$ref" | "$dynamicRef" | "$recursiveRef":
                return self._follow(value, kind, True)
        return False

    def _refuses_all(self, node: dict[str, Json], keyword: str, kind: str) -> bool:
        value: Any = node[keyword]
        match keyword:
            case "type":
                types = [value] if isinstance(value, str) else value
                return kind not in types and not (kind == "number" and "integer" in types)
            case "enum" | "const":
                return all(_KIND_OF_VALUE[type(one)] != kind for one in (value if keyword == "enum" else [value]))
            case "not":
                return self.takes_all(value, kind)
            case "allOf":
                return any(self.takes_none(part, kind) for part in value)
            case "oneOf" if sum(self.takes_all(part, kind) for part in value) > 1:
                return True
            case "anyOf" | "oneOf":
                return all(self.takes_none(part, kind) for part in value)
            case "if":
                return self._branches(node, kind, self.takes_none)
            case "$ref" | "$dynamicRef" | "$recursiveRef":
                return self._follow(value, kind, False)
        return False

    def _branches(self, node: dict[str, Json], kind: str, question: Any) -> bool:
        then, other = (question(node.get(branch, True), kind) for branch in ("then", "else"))
        if then and other:
            return True
        return (then and self.takes_all(node["if"], kind)) or (other and self.takes_none(node["if"], kind))

    def _follow(self, reference: str, kind: str, all_values: bool) -> bool:
        uri, _, fragment = reference.partition("#")
        if uri in self._documents:
            # Without itself: what leads back to it is not followed, and taken to constrain.
            others = {name: text for name, text in self._documents.items() if name != uri}
            analysis = _Analysis(parse(self._documents[uri]).value, self._check_formats, others)
            return analysis._follow(f"#{fragment}", kind, all_values)
        target = self._target(reference)
        step = (id(target), kind, all_values)
        if step in self._open:
            return all_values
        # A part that refuses what it takes says nothing for certain.
        if target is None or (id(target), kind, not all_values) in self._open:
            return False
        self._open.add(step)
        try:
            return self._is_certain(target, kind, all_values)
        finally:
            self._open.remove(step)

    def _target(self, reference: str) -> Json | None:
        """What a reference within the schema leads to; ``None`` where that is not certain."""
        if not self._one_base:
            return None
        own = self._root.get("$id") if isinstance(self._root, dict) else None
        if isinstance(own, str) and own:
            reference = reference.removeprefix(own.removesuffix("#")) or "#"
        if reference.startswith("#") and reference[1:2] not in ("", "/"):
            anchors = [node for node in nodes(self._root) if _anchored(node, reference)]
            return anchors[0] if len(anchors) == 1 else None
        return at_pointer(self._root, reference)

    def _is_unknown_format(self, name: str) -> bool:
        import jsonschema_rs

        draft = {"$schema": self._root["$schema"]} if isinstance(self._root, dict) and "$schema" in self._root else {}
        validator = jsonschema_rs.validator_for({**draft, "format": name}, validate_formats=True)
        return validator.is_valid(_NO_FORMAT)


def _anchored(node: dict[str, Json], reference: str) -> bool:
    names = (node.get("$anchor"), node.get("$dynamicAnchor"))
    return reference[1:] in names or reference in (node.get("$id"), node.get("id"))


def _covers(values: list[Json], kind: str) -> bool:
    """Whether all values of a kind are listed."""
    if kind == "boolean":
        return any(one is True for one in values) and any(one is False for one in values)
    return kind == "null" and None in values


def _matches_all(pattern: str) -> bool:
    """Whether a pattern certainly matches every text: nothing ties it to a place, and it matches the empty text."""
    if pattern in _ALL_TEXTS:
        return True
    # Tied to one end alone, it still matches there.
    free = pattern[1:] if pattern.startswith("^") else pattern.removesuffix("$")
    if _PLACED.search(free):
        return False
    try:
        return re.search(free, "") is not None
    except re.error:
        return False
