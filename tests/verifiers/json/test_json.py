"""JSONSchemaVerifier: what counts as the document, what fits, what is equal, and what a second attempt is told."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, Verifier, judge
from grpo_lightning.verifiers.json.extract import MAX_DEPTH, MAX_PIECES

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"

VERIFIER = JSONSchemaVerifier()
# Any JSON, said with a keyword: without a gold document, {} and true are refused.
ANY = {"type": ["object", "array", "string", "number", "boolean", "null"]}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANN = {"name": "Ann", "age": 42, "tags": ["a", "b"]}
ANN_TEXT = '{"name": "Ann", "age": 42, "tags": ["a", "b"]}'
BOB_TEXT = '{"name": "Bob", "age": 42, "tags": ["a", "b"]}'


def verdict(completion: str, gold: Any, schema: Any, verifier: JSONSchemaVerifier = VERIFIER) -> Verdict:
    metadata: Mapping[str, Any] = {} if schema is None else {"schema": schema}
    return judge(verifier, [Sample("", completion, gold, metadata)])[0]


def reward(completion: str, gold: Any, schema: Any = PERSON, verifier: JSONSchemaVerifier = VERIFIER) -> float:
    result = verdict(completion, gold, schema, verifier)
    assert result.error is None, result.error
    assert result.format_valid or not result.correct
    return verifier.reward(result)


HONEST = {
    "bare": ANN_TEXT,
    "spaces": f"\n\n  {ANN_TEXT} \r\n",
    "compact": json.dumps(ANN, separators=(",", ":")),
    "indented": json.dumps(ANN, indent=4),
    "other key order": '{"tags": ["a", "b"], "age": 42, "name": "Ann"}',
    "1.0 is an integer": '{"name": "Ann", "age": 42.0, "tags": ["a", "b"]}',
    "exponent": '{"name": "Ann", "age": 4.2e1, "tags": ["a", "b"]}',
    "escapes": '{"name": "\\u0041nn", "age": 42, "tags": ["a", "\\u0062"]}',
    "fenced": f"```json\n{ANN_TEXT}\n```",
    "fenced without a language": f"```\n{json.dumps(ANN, indent=2)}\n```",
    "fenced in capitals": f"```JSON\n{ANN_TEXT}\n```",
    "fenced in four": f"````json\n{ANN_TEXT}\n````",
    "fenced and indented": f"1. Result:\n   ```json\n   {ANN_TEXT}\n   ```\n",
    "fence opens behind text": f"Here it is: ```json\n{ANN_TEXT}\n```\nDone.",
    "fence closes behind the document": f"```json\n{ANN_TEXT}```",
    "fence in one line": f"```json {ANN_TEXT} ```",
    "fence never closed": f"```json\n{ANN_TEXT}",
    "Windows line ends": f"```json\r\n{json.dumps(ANN, indent=2)}\r\n```\r\n".replace("\n", "\r\n"),
    "prose": f"The person is {ANN_TEXT}, I think.",
    "prose in quotes": f'The answer is "{ANN_TEXT}".',
    "inline code": f"It is `{ANN_TEXT}`.",
    "bold": f"**{ANN_TEXT}**",
    "tags": f"<answer>{ANN_TEXT}</answer>",
    "thought": f"<think>Maybe {BOB_TEXT}?</think>\n{ANN_TEXT}",
    "thought opened by the prompt": f"Maybe {BOB_TEXT}?</think>{ANN_TEXT}",
    "citations": f"As [1] and [2, 3] say, and items[0] too, see [the docs](http://x): {ANN_TEXT} [^4]",
    "prose with braces": f"For {{x in S}} and \\frac{{1}}{{2}}, with a {{name}} :[ then\n{ANN_TEXT}",
    "a template": f'In the form {{"name": <string>, "age": <integer>}} that is:\n{ANN_TEXT}',
    "a template in a fence": f'```\n{{"name": ..., "age": ...}}\n```\n{ANN_TEXT}',
    "code": f"```python\nprint({{'name': 1}}, [1, 2])\n```\n```json\n{ANN_TEXT}\n```",
    "twice the same": f"{ANN_TEXT}\nAgain, sorted:\n```json\n{json.dumps(ANN, sort_keys=True)}\n```",
    "byte order mark": f"\ufeff{ANN_TEXT}",
    "NUL in prose": f"\0{ANN_TEXT}\0",
}


@pytest.mark.parametrize("style", HONEST)
def test_an_honest_completion_scores_1(style: str) -> None:
    assert reward(HONEST[style], ANN) == 1.0
    assert reward(HONEST[style], json.dumps(ANN)) == 1.0
    assert reward(HONEST[style], None) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        '"abc"',
        "42",
        "-0.5e-3",
        "true",
        "null",
        "[]",
        "{}",
        '"a {\\"b\\": 1}"',
        '{"": ""}',
        '{"text": "``` {[ \\" \\\\ \\n \\u0000 \\ud83d\\ude00 </x>"}',
        '{"text": "\U0001f600 \u2028 \x7f"}',
        '"\\\\ud800 is written so"',
        "[1, [2, {}], null]",
        "1e308",
        "9" * 300,
        "9007199254740993",
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
    ],
)
def test_any_json_value_can_be_the_answer(text: str) -> None:
    for completion in (text, f"\n{text}\n", f"```json\n{text}\n```", f"So:\n```\n{text}\n```\nThat is it."):
        assert reward(completion, text, {}) == 1.0
        assert reward(completion, text, True) == 1.0
        assert reward(completion, text, "true") == 1.0


CHEATS = {
    "empty": "",
    "spaces": " \n",
    "no JSON": "The person is Ann, who is 42.",
    "wrong": BOB_TEXT,
    "two different": f"{ANN_TEXT}\n{BOB_TEXT}",
    "two different, wrong one first": f"{BOB_TEXT}\n{ANN_TEXT}",
    "two different, one fenced": f"Not {BOB_TEXT}\n```json\n{ANN_TEXT}\n```",
    "two different, one behind a fence": f"```json\n{ANN_TEXT}\n```\nor {BOB_TEXT}",
    "two different fences": f"```json\n{ANN_TEXT}\n```\n```json\n{BOB_TEXT}\n```",
    "two in a fence": f"```json\n{ANN_TEXT}\n{BOB_TEXT}\n```",
    "two behind an odd fence": f"x: ```json\n{ANN_TEXT}\n```\ny: ```json\n{BOB_TEXT}\n```",
    "a shotgun": "\n".join(ANN_TEXT.replace("42", str(age)) for age in range(100)),
    "an array of answers": f"[{ANN_TEXT}, {BOB_TEXT}]",
    "an array of one": f"[{ANN_TEXT}]",
    "inside of an object": f'{{"answer": {ANN_TEXT}}}',
    "inside of a string": json.dumps(ANN_TEXT),
    "inside of a string, in prose": json.dumps({"answer": ANN_TEXT}),
    "inside of broken JSON": f'{{"answer": {ANN_TEXT},}}',
    "inside of unclosed JSON": f'{{"answer": {ANN_TEXT}',
    "inside of Python": f"{{'answer': {ANN_TEXT}}}",
    "inside of JavaScript": f"{{answer: {ANN_TEXT}}}",
    "doubled braces": f"{{{ANN_TEXT}}}",
    "in code": f"```python\nanswer = {ANN_TEXT}\n```",
    "thought": f"<think>{ANN_TEXT}</think>",
    "never closed thought": f"<think>{ANN_TEXT}",
    "thought behind": f"{ANN_TEXT}<think>hm",
    "split by a thought": '{"name": "Ann",<think></think> "age": 42, "tags": ["a", "b"]',
    "same key twice": '{"name": "Bob", "name": "Ann", "age": 42, "tags": ["a", "b"]}',
    "same key twice, escaped": '{"name": "Bob", "n\\u0061me": "Ann", "age": 42, "tags": ["a", "b"]}',
    "trailing comma": '{"name": "Ann", "age": 42, "tags": ["a", "b"],}',
    "comment": '{"name": "Ann", "age": 42, /* years */ "tags": ["a", "b"]}',
    "comment in a line": '{"name": "Ann", "age": 42, // years\n "tags": ["a", "b"]}',
    "comment in the fence": f"```json\n// Ann\n{ANN_TEXT}\n```",
    "single quotes": str(ANN),
    "raw line break in a string": '{"name": "An\nn", "age": 42, "tags": ["a", "b"]}',
    "NUL in a string": '{"name": "Ann\0", "age": 42, "tags": ["a", "b"]}',
    "byte order mark inside": '{\ufeff"name": "Ann", "age": 42, "tags": ["a", "b"]}',
    "no-break space": '{\u00a0"name": "Ann", "age": 42, "tags": ["a", "b"]}',
    "missing field": '{"name": "Ann", "age": 42}',
    "extra field": '{"name": "Ann", "age": 42, "tags": ["a", "b"], "note": "x"}',
    "extra null": '{"name": "Ann", "age": 42, "tags": ["a", "b"], "note": null}',
    "another array order": '{"name": "Ann", "age": 42, "tags": ["b", "a"]}',
    "longer array": '{"name": "Ann", "age": 42, "tags": ["a", "b", "b"]}',
    "number as string": '{"name": "Ann", "age": "42", "tags": ["a", "b"]}',
    "nearly the number": '{"name": "Ann", "age": 42.0000001, "tags": ["a", "b"]}',
    "another case": '{"name": "ann", "age": 42, "tags": ["a", "b"]}',
    "a lookalike letter": '{"name": "\u0410nn", "age": 42, "tags": ["a", "b"]}',
    "a lookalike digit": '{"name": "Ann", "age": \u0664\u0662, "tags": ["a", "b"]}',
    "leading zero": '{"name": "Ann", "age": 042, "tags": ["a", "b"]}',
    "plus sign": '{"name": "Ann", "age": +42, "tags": ["a", "b"]}',
    "closed too early": '{"name": "Ann", "age": 42, "tags": ["a", "b"}]',
    "the schema": json.dumps(PERSON),
    "nothing but the schema's reference": '{"$ref": "#"}',
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_scores_less_than_1(cheat: str) -> None:
    assert reward(CHEATS[cheat], ANN) < 1.0


@pytest.mark.parametrize(
    ("gold", "other"),
    [
        ("1", "true"),
        ("true", "1"),
        ("0", "false"),
        ("false", "0"),
        ("[1]", "[true]"),
        ('{"a": 0}', '{"a": false}'),
        ("null", "0"),
        ("null", "false"),
        ("null", '"null"'),
        ("{}", "[]"),
        ("[]", "null"),
        ('""', "null"),
        ("1", '"1"'),
        ("1", "[1]"),
        ("0", "-1e-300"),
        ("0.1", "0.1000000001"),
        ("9007199254740993", "9007199254740992"),
        ("9007199254740993", "9007199254740992.0"),
        ("100000000000000000000000000000000000001", "1e38"),
        ('"e\u0301"', '"\u00e9"'),
        ('{"a": null}', "{}"),
        ("{}", '{"a": null}'),
        ('{"a": 1, "b": 2}', '{"a": 2, "b": 1}'),
        ("[[1], 2]", "[1, [2]]"),
        ("[null]", "[]"),
    ],
)
def test_different_values_are_never_equal(gold: str, other: str) -> None:
    assert reward(gold, gold, {}) == 1.0
    assert reward(other, gold, {}) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "Infinity", "-Infinity", "nan", "[NaN]", '{"a": Infinity}', "1e999", "-1e999", "9" * 400, "1.0e+400"),
        *('"\ud800"', '"\\ud800"', '"\\udc00\\ud800"', '{"\\uDBFF": 1}', '"a\tb"', '"\\x41"', "'a'", "\ufeff1"),
        *("01", "+1", ".5", "1.", "0x1", "None", "True", "tru", "[1,]", "[,1]", "[1 2]", "{a: 1}", '{"a" 1}'),
        *('{"a": 1, "a": 1}', '[{"a": 1, "a": 1}]', "1 // one", "// one\n1", "/* one */ 1", "[1 /* one */]"),
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_no_json_has_no_valid_format(text: str) -> None:
    assert reward(text, None, ANY) == 0.0
    assert reward(f"```json\n{text}\n```", None, ANY) == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [(ANN_TEXT, 1.0), (BOB_TEXT, 0.5), ('{"name": "Ann"}', 0.0), ("[1]", 0.0), ("Ann", 0.0)],
)
def test_wrong_unfit_and_unreadable_are_told_apart(completion: str, expected: float) -> None:
    assert reward(completion, ANN) == expected


# Drafts

FITS = [
    ({"type": "integer"}, "1.0", "1.5"),
    ({"type": "integer"}, "1e3", "true"),
    ({"type": "number"}, "1", "true"),
    ({"type": "boolean"}, "true", "1"),
    ({"type": ["string", "null"]}, "null", "0"),
    ({"const": 1}, "1.0", "true"),
    ({"const": False}, "false", "0"),
    ({"enum": ["a", [1]]}, "[1.0]", "[true]"),
    ({"enum": [{"a": 1, "b": 2}]}, '{"b": 2, "a": 1}', '{"a": 1}'),
    ({"uniqueItems": True}, "[1, true, [1], [true]]", "[1, 1.0]"),
    ({"uniqueItems": True}, '[{"a": 1}, {"a": true}]', '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]'),
    ({"minimum": 5}, "5", "4.999"),
    ({"exclusiveMaximum": 5}, "4.999", "5"),
    ({"multipleOf": 0.01}, "19.99", "19.999"),
    ({"maximum": 10**30}, str(10**30), str(10**30 + 1)),
    ({"minLength": 2}, '"\U0001f600\U0001f600"', '"\U0001f600"'),
    ({"pattern": "^[a-z]+$"}, '"abc"', '"abc\\n"'),
    ({"pattern": "b"}, '"abc"', '"ac"'),
    ({"minItems": 1, "maxItems": 2}, "[0]", "[]"),
    ({"required": ["toString"]}, '{"toString": 1}', "{}"),
    ({"minProperties": 1}, '{"a": 1}', "{}"),
    ({"properties": {"a": False}}, "{}", '{"a": 1}'),
    ({"patternProperties": {"^x": {"type": "string"}}}, '{"x": "", "y": 1}', '{"x1": 1}'),
    ({"propertyNames": {"maxLength": 2}}, '{"ab": 1}', '{"abc": 1}'),
    ({"contains": {"const": 1}}, "[0, 1]", "[0, true]"),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, "2", "3"),
    ({"anyOf": [{"type": "string"}, {"minimum": 2}]}, "2", "1"),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, "3", "1.5"),
    ({"not": {"type": "string"}}, "1", '"1"'),
    ({"if": {"minimum": 10}, "then": {"multipleOf": 10}, "else": {"maximum": 5}}, "20", "7"),
    ({"$ref": "#/definitions/a%20b", "definitions": {"a b": {"type": "string"}}}, '"x"', "1"),
    ({"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}, '{"next": {}}', '{"next": {"x": 1}}'),
]
ONLY_2020 = [
    ({"prefixItems": [{"type": "string"}], "items": False}, '["a"]', '["a", 1]'),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}, "maxLength": 2}, '"ab"', '"abc"'),
    ({"contains": {"const": 1}, "minContains": 2}, "[1, 1]", "[1]"),
    ({"dependentRequired": {"a": ["b"]}}, '{"b": 1}', '{"a": 1}'),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, '{"b": 1}', '{"a": 1}'),
    ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, '{"a": 1}', '{"b": 1}'),
    ({"prefixItems": [{}], "unevaluatedItems": False}, "[1]", "[1, 2]"),
    ({"$dynamicAnchor": "n", "items": {"$dynamicRef": "#n"}, "type": "array"}, "[[]]", "[1]"),
]
ONLY_7 = [
    ({"items": [{"type": "string"}], "additionalItems": False}, '["a"]', '["a", 1]'),
    ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "string"}}, "maxLength": 2}, '"abc"', "1"),
    ({"dependencies": {"a": ["b"]}}, '{"b": 1}', '{"a": 1}'),
    ({"dependencies": {"a": {"required": ["b"]}}}, '{"b": 1}', '{"a": 1}'),
]
DRAFTED = (
    [(schema, *texts) for schema, *texts in FITS + ONLY_2020]
    + [({"$schema": DRAFT_2020, **schema}, *texts) for schema, *texts in FITS + ONLY_2020]
    + [({"$schema": DRAFT_7, **schema}, *texts) for schema, *texts in FITS + ONLY_7]
)


@pytest.mark.parametrize(("schema", "good", "bad"), DRAFTED)
def test_a_document_must_fit_the_schema_in_its_draft(schema: dict, good: str, bad: str) -> None:
    assert reward(good, None, schema) == 1.0
    assert reward(bad, None, schema) == 0.0
    assert "$" in verdict(bad, None, schema).feedback


def test_a_meta_schema_is_known_without_fetching_it() -> None:
    for draft in (DRAFT_2020, DRAFT_7):
        schema = {"$schema": draft, "$ref": draft}
        assert reward('{"type": "string"}', None, schema) == 1.0
        assert reward('{"type": "strnig"}', None, schema) == 0.0


# Rows and options


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, "needs a schema"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"type": "string", "type": "number"}', "same key twice"),
        ([1], "cannot be used"),
        (1, "cannot be used"),
        ({"type": "strnig"}, "cannot be used"),
        ({"minimum": "1"}, "cannot be used"),
        ({"pattern": "("}, "cannot be used"),
        ({"pattern": "^(?!a"}, "cannot be used"),
        ({"pattern": r"(a)\2"}, "cannot be used"),
        ({"$ref": "#/$defs/nothing"}, "cannot be used"),
        ({"$ref": "other.json"}, "cannot be used"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "cannot be used"),
        ({"$dynamicRef": "http://127.0.0.1:9/schema.json"}, "cannot be used"),
        ({"$schema": "http://127.0.0.1:9/schema.json"}, "cannot be used"),
        ({"$schema": DRAFT_7, "$id": "http://127.0.0.1:9/a.json", "$ref": "b.json"}, "cannot be used"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        ({"const": "\ud800"}, "Unicode"),
    ],
)
def test_a_bad_schema_is_an_error_and_not_a_wrong_answer(schema: Any, message: str) -> None:
    for completion in (ANN_TEXT, "", "x" * 2_000_000):
        result = verdict(completion, None, schema)
        assert result.error is not None
        assert message in result.error
        assert not result.correct


@pytest.mark.parametrize("gold", ["Ann", "", "{", '{"a": 1, "a": 1}', "NaN", float("nan"), {1}, b"{}", object()])
def test_an_unreadable_gold_document_is_an_error(gold: Any) -> None:
    result = verdict(ANN_TEXT, gold, {})
    assert result.error is not None
    assert "gold document" in result.error


def test_a_circular_or_deep_gold_document_is_an_error() -> None:
    circular: list = []
    circular.append(circular)
    assert verdict("[]", circular, {}).error is not None
    assert verdict("[]", "[" * 100_000, {}).error is not None


def test_a_gold_document_that_does_not_fit_the_schema_is_an_error() -> None:
    result = verdict(ANN_TEXT, {"name": "Ann"}, PERSON)
    assert result.error is not None
    assert "does not fit the schema" in result.error


def test_a_schema_may_be_given_as_an_option(tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON), encoding="utf-8")
    for schema in (PERSON, str(path)):
        verifier = JSONSchemaVerifier(schema=schema)
        assert reward(ANN_TEXT, ANN, None, verifier) == 1.0
        assert reward("{}", ANN, None, verifier) == 0.0
        # A row's own schema goes first.
        assert reward("1", 1, {"type": "integer"}, verifier) == 1.0
        assert reward(ANN_TEXT, ANN, None, pickle.loads(pickle.dumps(verifier))) == 1.0


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        JSONSchemaVerifier(schema=str(tmp_path / "missing.json"))
    with pytest.raises(ConfigError, match=r"JSONSchemaVerifier\.schema: .* cannot be used"):
        JSONSchemaVerifier(schema={"type": "strnig"})
    with pytest.raises(ConfigError, match="document"):
        JSONSchemaVerifier(document="first")  # type: ignore[arg-type]
    for wrong in ({"rel_tol": 1.0}, {"rel_tol": -0.1}, {"abs_tol": float("inf")}, {"abs_tol": float("nan")}):
        with pytest.raises(ConfigError, match="tol"):
            JSONSchemaVerifier(**wrong)
    with pytest.raises(ConfigError, match="max_chars"):
        JSONSchemaVerifier(max_chars=0)
    for fields in (["a", "a"], ["a", "a.b"], ["a.b", "a"], [""], ["a."], ["a", "a!", "a.b"]):
        with pytest.raises(ConfigError, match=r"JSONSchemaVerifier\.fields: "):
            JSONSchemaVerifier(fields=fields)


def test_the_options_can_be_written_in_yaml() -> None:
    options = {
        # Strings that are something else in YAML.
        "schema": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"const": "42"}}}}, "description": "a: b"},
        "document": "last",
        "array_order": False,
        "rel_tol": 0.1,
        "fields": ["a", "b.c"],
    }
    parser = ArgumentParser()
    parser.add_subclass_arguments(Verifier, "verifier")
    written = json.dumps(
        {"verifier": {"class_path": "grpo_lightning.verifiers.JSONSchemaVerifier", "init_args": options}}
    )
    for _ in range(2):
        config = parser.parse_string(written)
        verifier = parser.instantiate(config).verifier
        assert reward('{"a": "42"}', {"a": "42", "z": 2}, None, verifier) == 1.0
        assert reward('{"a": 42}', {"a": "42", "z": 2}, None, verifier) == 0.0
        written = parser.dump(config)


NUMBERS = "[1000, 0.5]"
NESTED = {"id": 1, "address": {"city": "Bonn", "zip": 5}, "items": [{"sku": "x", "price": 2}, {"sku": "y", "price": 3}]}


@pytest.mark.parametrize(
    ("options", "gold", "completion", "without", "expected"),
    [
        ({"document": "last"}, ANN, f"{BOB_TEXT} No, {ANN_TEXT}", 0.0, 1.0),
        ({"document": "last"}, ANN, f"{ANN_TEXT} No, {BOB_TEXT}", 0.0, 0.5),
        ({"document": "last"}, ANN, f'{BOB_TEXT}\n```json\n{ANN_TEXT}\n```\n{{"name": broken', 0.0, 1.0),
        ({"array_order": False}, "[1, [2, 3], 1.0]", "[[3, 2.0], 1, 1]", 0.5, 1.0),
        ({"array_order": False}, "[1, 1, 2]", "[1, 2, 2]", 0.5, 0.5),
        ({"array_order": False}, '[{"a": 1}, {"b": [1, 2]}]', '[{"b": [2, 1]}, {"a": 1}]', 0.5, 1.0),
        ({"array_order": False}, "[1, 2]", "[2, 1, 1]", 0.5, 0.5),
        ({"key_order": True}, '{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1.0, 0.5),
        ({"key_order": True}, '{"a": 1, "b": 2}', '{"a": 1, "b": 2}', 1.0, 1.0),
        ({"rel_tol": 0.01}, NUMBERS, "[1009, 0.496]", 0.5, 1.0),
        ({"rel_tol": 0.01}, NUMBERS, "[1011, 0.5]", 0.5, 0.5),
        ({"rel_tol": 0.01}, "[0]", "[1e-300]", 0.5, 0.5),
        ({"rel_tol": 0.01}, "[true]", "[1.001]", 0.5, 0.5),
        ({"abs_tol": 0.25}, NUMBERS, "[1000.25, 0.25]", 0.5, 1.0),
        ({"abs_tol": 0.25}, NUMBERS, "[1000.5, 0.5]", 0.5, 0.5),
        ({"abs_tol": 0.25}, str(10**300), str(10**300 + 1), 0.5, 0.5),
        ({"abs_tol": 1, "array_order": False}, "[0, 1]", "[2, 1]", 0.5, 1.0),
        ({"abs_tol": 1, "array_order": False}, "[0, 1, 5]", "[2, 5, 1]", 0.5, 1.0),
        ({"abs_tol": 1, "array_order": False}, "[0, 1]", "[2, 2]", 0.5, 0.5),
        ({"extra_fields": True}, {"name": "Ann", "age": 42}, ANN_TEXT, 0.5, 1.0),
        ({"extra_fields": True}, {"name": "Ann", "age": 43}, ANN_TEXT, 0.5, 0.5),
        ({"extra_fields": True}, ANN, '{"name": "Ann", "age": 42}', 0.5, 0.5),
        (
            {"extra_fields": True, "array_order": False},
            '[{"a": 1}, {"b": 1}]',
            '[{"a": 1, "b": 1}, {"a": 1}]',
            0.5,
            1.0,
        ),
        ({"extra_fields": True, "key_order": True}, '{"a": 1, "b": 2}', '{"a": 1, "c": 3, "b": 2}', 0.5, 1.0),
        ({"fields": ["name"]}, ANN, '{"name": "Ann", "age": 1}', 0.5, 1.0),
        ({"fields": ["name"]}, ANN, '{"name": "Bob", "age": 42}', 0.5, 0.5),
        ({"fields": ["name", "tags"]}, ANN, '{"name": "Ann", "age": 42}', 0.5, 0.5),
        ({"fields": ["address.city"]}, NESTED, '{"address": {"city": "Bonn"}}', 0.5, 1.0),
        ({"fields": ["address.city"]}, NESTED, '{"address": {"city": "Köln"}}', 0.5, 0.5),
        ({"fields": ["items.price"]}, NESTED, '{"items": [{"price": 2}, {"price": 3}]}', 0.5, 1.0),
        ({"fields": ["items.price"]}, NESTED, '{"items": [{"price": 2}]}', 0.5, 0.5),
        ({"fields": ["items.price"]}, NESTED, '{"items": {"price": 2}}', 0.5, 0.5),
        ({"max_chars": 10}, ANN, ANN_TEXT, 1.0, 0.0),
        ({"reward_correct": 2.0}, ANN, ANN_TEXT, 1.0, 2.0),
    ],
)
def test_an_option_changes_what_is_correct(
    options: dict, gold: Any, completion: str, without: float, expected: float
) -> None:
    schema = {key: value for key, value in PERSON.items() if key != "required"} if gold is ANN else {}
    assert reward(completion, gold, schema) == without
    assert reward(completion, gold, schema, JSONSchemaVerifier(**options)) == expected


def test_formats_are_checked_on_request() -> None:
    schema = {"type": "string", "format": "date"}
    assert reward('"2024-02-30"', None, schema) == 1.0
    checking = JSONSchemaVerifier(check_formats=True)
    assert reward('"2024-02-30"', None, schema, checking) == 0.0
    assert reward('"2024-02-29"', None, schema, checking) == 1.0


def test_a_partial_gold_document_needs_extra_fields() -> None:
    gold = {"name": "Ann"}
    assert verdict(ANN_TEXT, gold, PERSON).error is not None
    assert reward(ANN_TEXT, gold, PERSON, JSONSchemaVerifier(extra_fields=True)) == 1.0


def test_a_gold_document_without_any_field_to_compare_is_an_error() -> None:
    result = verdict(ANN_TEXT, ANN, PERSON, JSONSchemaVerifier(fields=["nmae"]))
    assert result.error is not None
    assert "fields" in result.error


# Feedback


@pytest.mark.parametrize(
    ("schema", "completion", "feedback"),
    [
        (PERSON, '{"name": "Ann", "age": "x"}', "$.age: must be an integer."),
        (PERSON, '{"name": "Ann"}', '$: lacks a required property "age".'),
        (PERSON, '{"name": "Ann", "age": 1, "tags": ["a", 2]}', "$.tags[1]: must be a string."),
        (PERSON, '{"name": "Ann", "age": 1, "x": 2}', "$.x: is not allowed."),
        (PERSON, "[]", "$: must be an object."),
        ({"type": ["number", "null"]}, '"a"', "$: must be a number or null."),
        ({"items": {"properties": {"a b": {"const": 42}}}}, '[{}, {"a b": 1}]', '$[1]["a b"]: must be the value that'),
        ({"enum": ["gold", "lead"]}, '"tin"', "$: must be one of the values that the schema allows."),
        ({"minimum": 42}, "1", "$: must not be below the schema's minimum."),
        ({"additionalProperties": {"maxLength": 2}}, '{"a": "xxx"}', "$.a: must not be longer than"),
        ({"patternProperties": {"^a": {"pattern": "^b"}}}, '{"ab": "a"}', "$.ab: must match the schema's pattern."),
        ({"prefixItems": [{}, {"uniqueItems": True}]}, "[1, [1, 1]]", "$[1]: must not have the same item twice."),
        ({"allOf": [{}, {"properties": {"a": {"minItems": 1}}}]}, '{"a": []}', "$.a: must not have fewer items"),
        (
            {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"items": {"type": "null"}}}},
            "[null, 0]",
            "$[1]: must be of the schema's type.",
        ),
        ({"if": {"type": "object"}, "then": {"required": ["k"]}}, "{}", '$: lacks a required property "k".'),
        (
            {"anyOf": [{"properties": {"a": {"type": "null"}}}, {"type": "null"}]},
            '{"a": 1}',
            "$.a: must be of the schema's type.",
        ),
        ({"anyOf": [{"type": "string"}, {"minimum": 2}]}, "1", "$: must fit one of the schema's alternatives"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, "1.5", "$: must fit exactly one of the schema's alternatives"),
        ({"properties": {"a": {"not": {}}}}, '{"a": 1}', "$.a: breaks the schema's rule not."),
        ({"contains": {"const": 42}}, "[1]", "$: breaks the schema's rule contains."),
        ({"not": {}, "contains": {"const": 42}}, "[1]", "$: does not fit the schema."),
        (
            {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True},
            "1",
            "$: must be above the schema's exclusiveMinimum.",
        ),
        (False, "1", "$: is not allowed."),
        ({"additionalProperties": False}, json.dumps({"x" * 1000: 1}), '$["' + "x" * 40 + '..."]: is not allowed.'),
        ({"additionalProperties": False}, '{"a\\n\\u00e9": 1}', '$["a\\n\\u00e9"]: is not allowed.'),
        (ANY, '{"a": 1, "a": 2}', "The JSON cannot be read: an object has the same key twice."),
        (ANY, "[NaN]", "The JSON cannot be read: NaN is not a JSON number."),
        (ANY, '{"a": 1 "b": 2}', "The JSON cannot be read: expecting ',' delimiter."),
        (ANY, "hello", "The JSON cannot be read: no document was found."),
        (ANY, "[] " * (MAX_PIECES + 1), "The JSON cannot be read: there are too many documents."),
        (ANY, "[" * (MAX_DEPTH + 1), "The JSON cannot be read: it is nested too deeply."),
        (ANY, "[1] [2]", "There are several different JSON documents. Give exactly one."),
    ],
)
def test_feedback_names_the_place_and_the_rule(schema: Any, completion: str, feedback: str) -> None:
    assert feedback in verdict(completion, None, schema).feedback


def test_feedback_stays_short() -> None:
    schema: dict = {"additionalProperties": {"$ref": "#"}, "type": "object"}
    document: Any = 1
    for _ in range(40):
        document = {"\u0000" * 50: document}
    feedback = verdict(json.dumps(document), None, schema).feedback
    assert feedback.endswith("...: must be an object.")
    assert len(feedback) < 3_000


def test_the_name_of_a_missing_property_is_kept_back_if_it_may_be_the_answer() -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["circle", "square"]}},
        "required": ["kind"],
        "if": {"properties": {"size": {"type": "number"}}},
        "then": {"required": ["circle"]},
    }
    gold = {"kind": "circle", "circle": 1}
    assert "circle" not in verdict('{"kind": "square"}', gold, schema).feedback
    assert "kind" in verdict("{}", gold, schema).feedback


def test_importing_the_verifiers_is_light() -> None:
    heavy = "{'torch', 'transformers', 'jsonschema_rs', 'sympy'}"
    code = f"import sys, grpo_lightning.verifiers; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
