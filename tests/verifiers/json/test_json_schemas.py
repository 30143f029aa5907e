"""The schemas of rows: vendors' wrappings, schemas that constrain nothing, look-around, and what is not registered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Prompt, Sample
from grpo_lightning.verifiers import JSONSchemaVerifier, judge
from grpo_lightning.verifiers.json.constrains import constrains, refused_kinds
from grpo_lightning.verifiers.json.row_schema import unwrap
from grpo_lightning.verifiers.json.rules import compile_schema
from tests.verifiers.json.judged import VERIFIER, correct, verdict

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "schema": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
REMOTE = "https://example.com/other.json"
ALL_TYPES = ["object", "array", "string", "number", "boolean", "null"]


# Vendors' wrappings

WRAPPED = {
    "OpenAI's response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": PLAIN, "strict": True}},
    "the same, with its key": {"response_format": {"type": "json_schema", "json_schema": {"schema": PLAIN}}},
    "OpenAI's json_schema": {"name": "m", "schema": PLAIN, "strict": True},
    "with a description": {"name": "m", "description": "object", "schema": PLAIN},
    "OpenAI's text.format": {"format": {"type": "json_schema", "name": "m", "schema": PLAIN, "strict": True}},
    "OpenAI's tool": {"type": "function", "function": {"name": "f", "description": "d", "parameters": PLAIN}},
    "a tool of the Responses API": {"type": "function", "name": "f", "parameters": PLAIN, "strict": True},
    "a function": {"name": "f", "parameters": PLAIN},
    "Anthropic's tool": {"name": "f", "description": "d", "input_schema": PLAIN},
    "the same, cached": {"name": "f", "input_schema": PLAIN, "cache_control": {"type": "ephemeral"}},
    "a tool of MCP": {"name": "f", "inputSchema": PLAIN, "annotations": {"readOnlyHint": True}},
    "Bedrock's tool": {"toolSpec": {"name": "f", "inputSchema": {"json": PLAIN}}},
    "Gemini's config": {"response_mime_type": "application/json", "response_schema": PLAIN},
    "the same in REST": {"generationConfig": {"responseMimeType": "application/json", "responseSchema": PLAIN}},
    "Gemini's JSON Schema": {"responseJsonSchema": PLAIN},
    "vLLM's": {"type": "json_object", "schema": PLAIN},
    "Ollama's": {"format": PLAIN},
    "a schema alone": {"schema": PLAIN},
    "a schema as text": {"json_schema": json.dumps(PLAIN)},
    "a request of the Responses API": {"text": {"format": {"type": "json_schema", "name": "m", "schema": PLAIN}}},
    "Mistral's": {"type": "json_schema", "json_schema": {"name": "m", "schema_definition": PLAIN}},
    "one tool": {"tools": [{"type": "function", "function": {"name": "f", "parameters": PLAIN}}]},
    "one tool of Anthropic, chosen": {"tools": [{"name": "f", "input_schema": PLAIN}], "tool_choice": {"type": "any"}},
    "one tool of Bedrock": {"toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": PLAIN}}}]}},
    "one function": {"functions": [{"name": "f", "parameters": PLAIN}]},
    "one function of Gemini": {"tools": [{"functionDeclarations": [{"name": "f", "parameters": PLAIN}]}]},
    "vLLM's extra_body": {"extra_body": {"guided_json": PLAIN}},
}  # fmt: skip


@pytest.mark.parametrize("vendor", WRAPPED)
def test_a_wrapped_schema_is_the_schema(vendor: str) -> None:
    for schema in (WRAPPED[vendor], json.dumps(WRAPPED[vendor])):
        assert correct('{"a": 1}', schema)
        assert correct('{"a": 1, "schema": "x"}', schema)
        for wrong in ('{"zzz": "anything"}', '{"a": "1"}', "{}", "[]", '{"name": "m"}'):
            assert not correct(wrong, schema)
    assert judge(JSONSchemaVerifier(schema=WRAPPED[vendor]), [Sample("", '{"a": 1}')])[0].correct
    VERIFIER.require(Prompt([], None, {"schema": WRAPPED[vendor]}))


def test_types_of_openapi_are_read_inside_of_geminis_wrapper() -> None:
    inner = {
        "type": "OBJECT",
        "properties": {
            "a": {"type": "INTEGER"},
            "b": {"type": "ARRAY", "items": {"type": "STRING", "nullable": True}},
            "type": {"type": "STRING", "enum": ["OBJECT"]},
        },
        "required": ["a"],
    }
    schema = {"response_schema": inner}
    assert correct('{"a": 1, "b": ["x", null], "type": "OBJECT"}', schema)
    for wrong in ('{"a": "1"}', '{"a": 1, "b": [1]}', '{"a": null}', '{"a": 1, "type": "object"}', "[]"):
        assert not correct(wrong, schema)


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: {"name": "f", "parameters": inner}])
@pytest.mark.parametrize(("map_", "float_", "integer"), [("OBJECT", "NUMBER", "INTEGER"), ("dict", "float", "integer")])
def test_types_of_gemini_and_of_the_berkeley_leaderboard(wrap: Any, map_: str, float_: str, integer: str) -> None:
    properties = {"a": {"type": integer}, "b": {"anyOf": [{"type": float_}, {"type": map_}]}, "c": {"type": "any"}}
    schema = wrap({"type": map_, "properties": properties, "required": ["a"], "additionalProperties": {"type": map_}})
    for good in ('{"a": 1}', '{"a": 1, "b": 1.5}', '{"a": 1, "b": {}, "c": [], "d": {}}'):
        assert correct(good, schema)
    for wrong in ("[]", "{}", '{"a": 1.5}', '{"a": 1, "b": "x"}', '{"a": 1, "d": 1}'):
        assert not correct(wrong, schema)


def test_a_list_of_one_tool_is_the_tool_and_of_several_an_error() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": PLAIN}}
    for schema in ([tool], json.dumps([tool]), json.dumps(json.dumps(PLAIN))):
        assert correct('{"a": 1}', schema)
        assert not correct("{}", schema)
    for several in ([tool, tool], {"tools": [tool, tool]}, {"functions": [tool["function"]] * 2}):
        assert "a request with 2 tools: give the schema of one" in (verdict('{"a": 1}', several).error or "")
    # The other member of a request says what is wanted.
    wanted = {"type": "json_schema", "json_schema": {"name": "m", "schema": PLAIN}}
    assert correct('{"a": 1}', {"tools": [tool, tool], "response_format": wanted})
    # It may ask for a list.
    assert "it must be an object, and is a list" in (verdict('{"a": 1}', [PLAIN]).error or "")
    for empty in ({"type": "json_object"}, {"response_format": {"type": "json_object"}}):
        assert "without a schema in it" in (verdict('{"a": 1}', empty).error or "")


@pytest.mark.parametrize(
    "schema",
    [
        PLAIN,
        {"type": "object", "schema": PLAIN},
        {"properties": {"schema": PLAIN, "parameters": PLAIN}},
        {"schema": PLAIN, "parameters": PLAIN},
        {"name": {"type": "string"}, "schema": PLAIN},
        {"name": "string", "schema": PLAIN},
        {"other": PLAIN},
        {"$ref": "#/schema", "schema": PLAIN},
        {"schema": True},
        {"text": {"type": "string"}},
        {"tools": []},
        [PLAIN],
        True,
        False,
    ],
)
def test_what_is_no_wrapper_stays_as_it_is(schema: Any) -> None:
    assert unwrap(schema) is schema


# Schemas that constrain nothing


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "string"},
        {"name": "string", "age": "integer"},
        {"name": {"type": "string"}, "age": {"type": "integer"}},
        {"title": "A person", "description": "with a name"},
        {"$id": "http://x/y", "$comment": "x"},
        {"default": {}, "examples": [1]},
        {"$defs": {"a": PLAIN}},
        {"definitions": {"a": PLAIN}},
        {"then": PLAIN},
        {"minContains": 2},
        {"properties": {}},
        {"properties": {"a": {}, "b": {"description": "x"}}},
        {"required": []},
        {"items": {}},
        {"minItems": 0, "uniqueItems": False},
        {"additionalProperties": True},
        {"allOf": [{}, True]},
        {"anyOf": [PLAIN, {}]},
        {"oneOf": [{}]},
        {"if": PLAIN},
        {"not": False},
        {"format": "date"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"name": "string"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {}}},
        {"type": ALL_TYPES},
        {"items": {"type": ALL_TYPES}},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a"}}},
        {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a"}}},
        {"$ref": "#/allOf/0", "allOf": [{}]},
        {"properties": {"child": {"$ref": "#"}}},
        {"dependentRequired": {"a": []}},
        {"dependencies": {"a": []}},
        {"dependencies": {"a": True}},
        {"propertyNames": {"type": "string"}},
        {"not": {"not": {}}},
        {"not": {"allOf": [{"type": "string"}, {"type": "object"}]}},
        {"not": {"enum": []}},
        {"pattern": ""},
        {"pattern": ".*"},
        {"pattern": "^(a|b*)"},
        {"anyOf": [{"type": "object"}, {"not": {"type": "object"}}]},
        {"oneOf": [{"type": one} for one in ALL_TYPES]},
        {"anyOf": [{"enum": [True, None, False]}, {"type": ["object", "array", "number", "string"]}]},
        {"if": {"type": "string"}, "then": {"type": "string"}, "else": {"not": {"type": "string"}}},
        # Keywords of other drafts.
        {"$schema": DRAFT_7, "prefixItems": [PLAIN]},
        {"$schema": DRAFT_7, "dependentRequired": {"a": ["b"]}},
        {"$schema": DRAFT_4, "const": 1},
        {"$schema": DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": {}}, "type": "object"},
        {"name": "m", "schema": {"name": "string"}},
    ],
)
def test_a_schema_that_constrains_nothing_is_an_error(schema: Any) -> None:
    for gold in (None, '{"zzz": "anything"}'):
        result = verdict('{"zzz": "anything"}', schema, gold)
        assert result.error is not None
        assert "constrains nothing" in result.error
    with pytest.raises(ValueError, match="constrains nothing"):
        VERIFIER.require(Prompt([], None, {"schema": schema}))
    with pytest.raises(ValueError, match="constrains nothing"):
        JSONSchemaVerifier(schema=schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/a", "$defs": {"a": PLAIN}}, '{"a": 1}', "{}"),
        ({"allOf": [{}, PLAIN]}, '{"a": 1}', "{}"),
        ({"anyOf": [PLAIN, {"type": "null"}]}, "null", "1"),
        ({"oneOf": [{}, PLAIN]}, "{}", '{"a": 1}'),
        ({"const": None}, "null", "1"),
        ({"minItems": 1}, "{}", "[]"),
        ({"properties": {"a": False}}, "{}", '{"a": 1}'),
        ({"properties": {"a": {}, "b": {"items": {"type": "null"}}}}, '{"b": [null]}', '{"b": [1]}'),
        ({"additionalProperties": False}, "{}", '{"a": 1}'),
        ({"unevaluatedProperties": False}, "{}", '{"a": 1}'),
        ({"if": True, "then": PLAIN}, '{"a": 1}', "{}"),
        ({"prefixItems": [{"type": "null"}]}, "[null]", "[1]"),
        ({"$schema": DRAFT_4, "minimum": 1}, "1", "0"),
        ({"type": "object", "name": "string", "x-order": 1, "example": {"a": 1}}, "{}", "[]"),
        ({"type": "object", "properties": {"propertys": {"type": "string"}, "require": {}}}, '{"require": 1}', "[]"),
        ({"type": ["object", "array", "string", "integer", "boolean", "null"]}, "1", "1.5"),
        ({"not": {"not": PLAIN}}, '{"a": 1}', "{}"),
        ({"anyOf": [PLAIN, {"not": {"type": "object"}}]}, "1", "{}"),
        ({"pattern": "^a*$"}, '"a"', '"b"'),
        ({"pattern": "^a|b*c"}, '"ab"', '"b"'),
        ({"type": "array", "items": {"$ref": "#"}}, "[[]]", "[1]"),
        ({"properties": {"a": {"$ref": "#"}, "b": False}}, '{"a": {}}', '{"a": {"b": 1}}'),
        ({"dependencies": {"a": ["b"]}}, "{}", '{"a": 1}'),
        ({"$schema": DRAFT_7, "contains": True, "minContains": 0}, "[1]", "[]"),
    ],
)
def test_a_schema_that_refuses_something_is_none(schema: Any, good: str | None, bad: str | None) -> None:
    assert good is None or correct(good, schema)
    assert bad is None or not correct(bad, schema)


@settings(deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.booleans(),
            st.lists(st.sampled_from(ALL_TYPES), min_size=1, unique=True).map(lambda types: {"type": types}),
            st.sampled_from([{"enum": [None]}, {"enum": [True, False]}, {"const": {}}, {"minLength": 0}]),
        ),
        lambda inner: st.one_of(
            inner.map(lambda part: {"not": part}),
            st.builds(
                lambda keyword, parts: {keyword: parts},
                st.sampled_from(["allOf", "anyOf", "oneOf"]),
                st.lists(inner, min_size=1, max_size=3),
            ),
            st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        ),
        max_leaves=6,
    )
)
def test_a_schema_of_kinds_constrains_nothing_exactly_if_it_takes_every_kind(schema: Any) -> None:
    """The second formula: two values of each kind, none of which these schemas single out, but {}."""
    values = [None, True, False, 0, 1.5, "", "x", [], [1], {}, {"zzz": 1}]
    takes_all = all(compile_schema(json.dumps(schema), False).fits(value) for value in values)
    assert takes_all >= (not constrains(schema, False))
    takes_none = not any(compile_schema(json.dumps(schema), False).fits(value) for value in values)
    assert takes_none >= (len(refused_kinds(schema, False)) == len(ALL_TYPES))
    if '"const"' not in json.dumps(schema):
        assert takes_all == (not constrains(schema, False))


def test_a_schema_that_refuses_what_it_takes_is_not_judged() -> None:
    part = {"allOf": [{"$ref": "#/$defs/a"}, {"not": {"$ref": "#/$defs/a"}}]}
    for schema in ({"$ref": "#/$defs/a", "$defs": {"a": part}}, {"not": {"$ref": "#"}}):
        assert constrains(schema, False)
        assert not refused_kinds(schema, False)


def test_a_registered_schema_constrains_as_its_own_text_does() -> None:
    anything = {"x:any": {"$defs": {"a": {}}}, "x:plain": {"$defs": {"a": PLAIN}, "$ref": "#/$defs/a"}}
    verifier = JSONSchemaVerifier(schemas=anything)
    for reference in ("x:any", "x:any#/$defs/a"):
        assert "constrains nothing" in (verdict("1", {"$ref": reference}, None, verifier).error or "")
    for reference in ("x:plain", "x:plain#/$defs/a"):
        assert verdict('{"a": 1}', {"$ref": reference}, None, verifier).correct
        assert not verdict("1", {"$ref": reference}, None, verifier).correct


@pytest.mark.parametrize(
    "schema", [False, {"not": {}}, {"enum": []}, {"oneOf": [{}, True]}, {"allOf": [{"type": "null"}, PLAIN]}]
)
def test_a_schema_that_refuses_everything_is_an_error(schema: Any) -> None:
    assert "refuses every JSON document" in (verdict("1", schema).error or "")


@pytest.mark.parametrize(
    "schema",
    [
        PLAIN,
        {"$ref": "#/$defs/a", "$defs": {"a": PLAIN}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": PLAIN}},
        {"anyOf": [PLAIN, {"type": "null"}]},
        {"enum": [{"a": 1}]},
    ],
)
def test_a_citation_is_no_document_where_the_schema_refuses_arrays(schema: Any) -> None:
    assert correct('As in [1]: {"a": 1}, see [2].', schema)
    assert not correct('As in [1]: {"b": 1}', schema)
    assert not correct('As in [1]: {"a": 1}', {"anyOf": [schema, {"type": "array"}], "$defs": {"a": PLAIN}})


def test_format_constrains_where_it_is_checked() -> None:
    verifier = JSONSchemaVerifier(check_formats=True)
    assert not verdict('"x"', {"format": "date"}, None, verifier).correct
    assert verdict('"2024-02-29"', {"format": "date"}, None, verifier).correct
    assert "constrains nothing" in (verdict('"x"', {"format": "no such format"}, None, verifier).error or "")


@pytest.mark.parametrize("schema", [{}, True, "{}", "true", {"$schema": DRAFT_7}, {"name": "m", "schema": {}}])
def test_any_json_may_be_asked_for_on_purpose_where_there_is_a_gold_document(schema: Any) -> None:
    assert correct('{"a": 1}', schema, {"a": 1})
    assert not correct('{"a": 2}', schema, {"a": 1})
    VERIFIER.require(Prompt([], {"a": 1}, {"schema": schema}))
    error = verdict('{"a": 1}', schema).error
    assert error is not None
    assert "every JSON document would be correct" in error
    with pytest.raises(ValueError, match="there is no gold document"):
        VERIFIER.require(Prompt([], None, {"schema": schema}))


@pytest.mark.parametrize(
    ("schema", "name", "keyword"),
    [
        ({"type": "object", "propertys": {"a": {}}}, "propertys", "properties"),
        ({"type": "object", "property": {"a": {}}}, "property", "properties"),
        ({"type": "object", "require": ["a"]}, "require", "required"),
        ({"type": "object", "additional_properties": False}, "additional_properties", "additionalProperties"),
        ({"type": "object", "additionalproperties": False}, "additionalproperties", "additionalProperties"),
        ({"tpye": "object"}, "tpye", "type"),
        ({"type": "string", "patern": "a"}, "patern", "pattern"),
        ({"type": "string", "min_length": 1}, "min_length", "minLength"),
        ({"type": "number", "minimun": 1}, "minimun", "minimum"),
        ({"enums": [1]}, "enums", "enum"),
        ({"any_of": [PLAIN]}, "any_of", "anyOf"),
        ({"type": "array", "item": PLAIN}, "item", "items"),
        ({"properties": {"a": {"items": [{"types": "string"}]}}, "$schema": DRAFT_7}, "types", "type"),
        ({"$defs": {"a": {"requires": ["a"]}}, "type": "object"}, "requires", "required"),
        ({"$Ref": "#/$defs/a", "$defs": {"a": PLAIN}}, "$Ref", "$ref"),
        ({"$reff": "#/$defs/a", "$defs": {"a": PLAIN}}, "$reff", "$ref"),
        ({"type": "object", "ref": "#/$defs/a", "$defs": {"a": PLAIN}}, "ref", "$ref"),
        ({"type": "object", "nott": PLAIN}, "nott", "not"),
        ({"typ": "object"}, "typ", "type"),
        ({"type": "object", "cosnt": {}}, "cosnt", "const"),
        ({"type": "object", "constant": {}}, "constant", "const"),
        ({"type": "object", "enumeration": [{}]}, "enumeration", "enum"),
        ({"type": "string", "fromat": "date"}, "fromat", "format"),
        ({"type": "string", "formats": "date"}, "formats", "format"),
        ({"type": "string", "regex": "a"}, "regex", "pattern"),
        ({"type": "object", "req": ["a"]}, "req", "required"),
        ({"type": "object", "props": {"a": {}}}, "props", "properties"),
        ({"type": "object", "allowAdditionalProperties": False}, "allowAdditionalProperties", "additionalProperties"),
        ({"type": "integer", "min": 1}, "min", "minimum"),
        ({"type": ["string", "null"], "max": 1}, "max", "maxLength"),
        ({"type": "array", "minItem": 1, "maxItems": 1}, "minItem", "minItems"),
        ({"type": "object", "propertyNames": {"patern": "x"}}, "patern", "pattern"),
        ({"type": "object", "unevaluatedProperties": {"require": ["a"]}}, "require", "required"),
        ({"type": "array", "unevaluatedItems": {"require": ["a"]}}, "require", "required"),
        ({"$schema": DRAFT_7, "type": "object", "dependencies": {"a": {"require": ["a"]}}}, "require", "required"),
        (
            {"properties": {"a": {"$ref": "#/x/z"}}, "type": "object", "x": {"z": {"require": ["a"]}}},
            "require",
            "required",
        ),
    ],
)
def test_a_misspelled_keyword_is_named(schema: Any, name: str, keyword: str) -> None:
    result = verdict("{}", schema, "{}")
    assert result.error is not None
    assert f"{name!r}: did you mean {keyword!r}?" in result.error


@pytest.mark.parametrize(
    "word",
    ["name", "note", "notes", "version", "strict", "order", "propertyOrdering", "nullable", "optional",
     "discriminator", "text", "unit", "values", "parameters", "cost", "form", "options", "x-typ", "example", "tags"],
)  # fmt: skip
def test_other_words_are_no_mistakes(word: str) -> None:
    for value in ("x", 1, {}, ["a"], True):
        assert correct("{}", {"type": "object", word: value})


@pytest.mark.parametrize(
    ("word", "value"),
    [("types", ["a"]), ("types", "a"), ("typeOf", "x"), ("constraint", {"a": 1}), ("containers", {"a": 1}),
     ("dependent", {"a": 1}), ("requiredXor", ["a"]), ("multiple", 2), ("minimumAge", 3), ("maximumValue", 3),
     ("typed", "x"), ("requirements", ["a"]), ("contents", {}), ("formatted", "x"), ("$comment", "x")],
)  # fmt: skip
def test_a_word_that_would_assert_nothing_there_is_no_mistake(word: str, value: Any) -> None:
    assert correct('{"a": 1}', {**PLAIN, word: value})


def test_words_near_to_keywords_are_no_mistakes() -> None:
    for schema in ({"type": "array", "constraints": {"a": 1}}, {"type": "array", "num": [1], "containers": {}}):
        assert correct("[]", schema)
    # A flag is no constant.
    assert correct('"x"', {"type": "string", "constant": True})


# References to what is not registered


@pytest.mark.parametrize(
    "reference", [REMOTE, f"{REMOTE}#/$defs/a", f"{REMOTE}#anchor", "other.json", "file:///etc/hosts"]
)
def test_a_reference_is_an_error_only_where_validation_reaches_it(reference: str) -> None:
    uri = reference.partition("#")[0]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": reference}},
        "$defs": {"unused": {"items": {"$ref": reference}}},
    }
    assert correct('{"a": 1}', schema)
    assert not correct('{"a": "1"}', schema)
    assert not correct("[]", schema)
    for reached in ({"a": 1, "b": 1}, {"b": None}):
        result = verdict(json.dumps(reached), schema)
        assert result.error is not None
        assert uri in result.error
        assert "which is not present" in result.error
        # A gold document that reaches it makes the row an error, whatever the completion.
        assert uri in (verdict('{"a": 1}', schema, reached).error or "")
    # Registered, it is like any other.
    if reference == REMOTE:
        registered = JSONSchemaVerifier(schemas={REMOTE: {"type": "string"}})
        assert verdict('{"b": "x"}', schema, None, registered).correct
        assert not verdict('{"b": 1}', schema, None, registered).correct


@pytest.mark.parametrize("wrap", [lambda ref: {"not": ref}, lambda ref: {"allOf": [{}, ref]}, lambda ref: ref])
def test_a_reference_that_every_document_reaches_makes_the_row_an_error(wrap: Any) -> None:
    schema = wrap({"$ref": REMOTE})
    for completion in ("1", "", "no JSON"):
        assert REMOTE in (verdict(completion, schema).error or "")
    with pytest.raises(ValueError, match="which is not present"):
        VERIFIER.require(Prompt([], None, {"schema": schema}))


def test_a_reference_in_an_alternative_is_an_error_only_where_a_document_reaches_it() -> None:
    for wrap in (lambda part: part, lambda part: {"allOf": [part]}, lambda part: {"$ref": "#/x", "x": part}):
        schema = wrap({"anyOf": [{"type": "object", "required": ["a"]}, {"$ref": REMOTE}]})
        assert correct('{"a": 1}', schema)
        assert REMOTE in (verdict('{"b": 1}', schema).error or "")
        assert verdict("no JSON", schema).error is None
    reference = {"$ref": REMOTE}
    for needed in ({"anyOf": [reference]}, {"$ref": "#/x", "x": reference, "anyOf": [{"type": "null"}, {}]}):
        assert REMOTE in (verdict("no JSON", needed).error or "")


def test_what_is_unevaluated_depends_on_what_is_missing() -> None:
    for keyword, document in (("unevaluatedProperties", '{"a": 1}'), ("unevaluatedItems", "[1]")):
        for reference in ({"$ref": REMOTE}, {"anyOf": [True, {"$ref": REMOTE}]}, {"if": {"$ref": REMOTE}}):
            assert REMOTE in (verdict(document, {keyword: False, **reference}).error or "")
        unused = {keyword: False, "$defs": {"unused": {"$ref": REMOTE}}}
        assert not correct(document, unused)
        assert correct("1", unused)


KEYWORDS = st.sampled_from(["anyOf", "oneOf", "allOf"])


@settings(deadline=None)
@given(KEYWORDS, st.permutations([{"type": "integer"}, {"$ref": REMOTE}, {"minimum": 3}]), st.sampled_from([1, 5, "x"]))
def test_without_an_error_a_missing_document_does_not_matter(keyword: str, parts: Any, value: Any) -> None:
    """The second formula: whatever the missing document were, the verdict would be the same."""
    schema = {keyword: parts}
    judged = verdict(json.dumps(value), schema)
    if judged.error is None:
        for known in ({"not": {}}, {"multipleOf": 7}):
            registered = JSONSchemaVerifier(schemas={REMOTE: known})
            assert verdict(json.dumps(value), schema, None, registered).correct == judged.correct
