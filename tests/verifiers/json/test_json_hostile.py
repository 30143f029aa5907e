"""JSONSchemaVerifier against completions and schemas that mean harm: fast, without a fetch, without a leak.

The properties are checked here, too, with the help of hypothesis.
"""

from __future__ import annotations

import copy
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, judge

LIMIT_S = 0.5
VERIFIER = JSONSchemaVerifier()
LONG = 249_000

# Refuses one text, since a schema that refuses nothing is an error.
ANY = {"not": {"const": "refused by ANY"}}
REF = {"$ref": "#"}
# A wrong document takes exponential time wherever each alternative is tried on each level.
TREE = {
    "anyOf": [
        {"type": "number"},
        {"type": "array", "items": REF},
        {"type": "array", "items": REF, "maxItems": 3},
        {"type": "object", "additionalProperties": REF},
        {"type": "object", "properties": {"a": REF}, "unevaluatedProperties": False},
    ]
}
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
    "required": ["a"],
    "additionalProperties": False,
}
PATTERNS = {
    "type": "array",
    "items": {"anyOf": [{"pattern": "^(a+)+$"}, {"pattern": "^(a|a)*$"}, {"pattern": "(a?){50}a{50}$"}]},
    "uniqueItems": True,
}
SCHEMAS = {"none": True, "tree": TREE, "strict": STRICT, "patterns": PATTERNS}
GOLDS = {"none": "[1]", "tree": "[1]", "strict": '{"a": [1]}', "patterns": '["aaa"]'}

HOSTILE_TEXTS = {
    "10 MB of text": "a" * 10_000_000,
    "10 MB of JSON": "[" + "1," * 5_000_000 + "1]",
    "10 MB of brackets": "[" * 10_000_000,
    "10 MB of thoughts": "<think>" * 1_400_000,
    "2 MB of thoughts": "<think></think>" * 130_000 + "[2]",
    "letters": "a" * LONG,
    "spaces": " " * LONG,
    "line breaks": "\n" * LONG,
    "100,000 nested arrays": "[" * 100_000 + "]" * 100_000,
    "100,000 nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nested to the limit": "[" * 99 + '"x"' + "]" * 99,
    "nested objects to the limit": '{"a":' * 99 + '"x"' + "}" * 99,
    "nested to the limit, wide": "[" * 90 + ",".join(["[1,[2],{}]"] * 20_000) + "]" * 90,
    "opening brackets": "[" * LONG,
    "opening braces": "{" * LONG,
    "opening brackets with spaces": "[ " * (LONG // 2),
    "brackets that open nothing": "[x" * (LONG // 2),
    "braces that open nothing": "{x " * (LONG // 3),
    "a brace and a word": "{" + "x" * LONG,
    "a brace and spaces": "{" + " " * LONG + "x",
    "keys without end": "{x:" * (LONG // 3),
    "starts of objects": '{"a":' * (LONG // 5),
    "starts of arrays": '["' * (LONG // 2),
    "closing brackets": "]" * LONG,
    "closed brackets": "[]" * (LONG // 2),
    "closed braces": "{}" * (LONG // 2),
    "broken documents": "[1x]" * (LONG // 4),
    "broken document": "[1" + " " * LONG + "x]",
    "quotes": '"' * LONG,
    "quotes in an array": '["' + '","' * (LONG // 3) + '"]',
    "quotes and brackets": '["[",",' * (LONG // 7),
    "backslashes": '["' + "\\" * LONG,
    "escaped quotes": '["' + '\\"' * (LONG // 2),
    "escapes": '["' + "\\n" * (LONG // 2) + '"]',
    "escaped surrogates": '["' + "\\ud800" * (LONG // 6) + '"]',
    "lone surrogates": '["' + "\ud800" * LONG + '"]',
    "a surrogate in prose": "\udfff [2]",
    "NUL": "\0" * LONG,
    "NUL in a string": '["\0"]',
    "byte order marks": "\ufeff" * 1000 + "[2]",
    "fences": "```\n" * (LONG // 4),
    "fences of JSON": "```json\n[]\n```\n" * (LONG // 15),
    "backticks": "`" * LONG,
    "backticks and spaces": "```" + " " * LONG + "x y",
    "a fence and a word": "```" + "x" * LONG + " y",
    "thoughts": "<think>" * (LONG // 7),
    "closed thoughts": "<think></think>" * (LONG // 15),
    "numbers": "[" + "1," * (LONG // 2) + "1]",
    "different numbers": "[" + ",".join(map(str, range(35_000))) + "]",
    "floats": "[" + ",".join(f"{i}.5" for i in range(27_000)) + "]",
    "a long integer": "1" * LONG,
    "a long integer in an array": "[" + "1" * LONG + "]",
    "a long decimal": "[0." + "1" * LONG + "]",
    "a long zero": "[0." + "0" * LONG + "e9]",
    "a huge number": '{"a": [1e999]}',
    "huge numbers": "[" + "1e308," * (LONG // 6) + "-1e999]",
    "a huge exponent": "[1e" + "9" * LONG + "]",
    "a small exponent": "[1e-" + "9" * LONG + "]",
    "NaN": '{"a": [NaN]}',
    "same keys": "{" + '"a":1,' * (LONG // 6) + '"a":1}',
    "different keys": "{" + ",".join(f'"{i}":{i}' for i in range(18_000)) + "}",
    "objects": "[" + ",".join(f'{{"a":{i}}}' for i in range(18_000)) + "]",
    "same objects": "[" + ",".join(['{"a":{"b":[]}}'] * 16_000) + "]",
    "different items": '{"a":[' + ",".join(map(str, range(35_000))) + "]}",
    "wrong at the end": '{"a":[' + "1," * (LONG // 2 - 10) + '"x"]}',
    "a wrong key": json.dumps({"a": [1], "x" * LONG: 1}),
    "a backtracking string": json.dumps(["a" * 240_000 + "!"]),
    "backtracking strings": json.dumps(["a" * 90 + str(i) for i in range(2_500)]),
    "pickle": "cos\nsystem\n(S'exit 1'\ntR.",
    "class": '{"__class__": "os.system", "py/object": "os.system", "$ref": "file:///etc/passwd"}',
}


def timed(completion: str, schema: Any, gold: Any, verifier: JSONSchemaVerifier = VERIFIER) -> tuple[Verdict, float]:
    """The verdict, and the better of two times of the processor, which other work does not lengthen.

    The schema is compiled already, as it is from the second sample on.
    """
    best = float("inf")
    judge(verifier, [Sample("", "1", gold, {"schema": schema})])
    for _ in range(2):
        start = time.process_time()
        verdict = judge(verifier, [Sample("", completion, gold, {"schema": schema})])[0]
        best = min(best, time.process_time() - start)
        if best < LIMIT_S:
            break
    return verdict, best


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_hostile_completion_gets_a_verdict_in_time(name: str, schema: str) -> None:
    verdict, seconds = timed(HOSTILE_TEXTS[name], SCHEMAS[schema], GOLDS[schema])
    assert verdict.error is None
    assert not verdict.correct
    assert len(verdict.feedback) < 1_000
    assert seconds < LIMIT_S


@pytest.mark.parametrize(
    "options", [{"document": "last"}, {"array_order": False, "rel_tol": 0.1}, {"fields": ["a"], "check_formats": True}]
)
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_no_option_makes_it_slow(name: str, options: dict) -> None:
    verifier = JSONSchemaVerifier(**options)
    verdict, seconds = timed(HOSTILE_TEXTS[name], True, '{"a": ["gold"]}', verifier)
    assert verdict.error is None
    assert not verdict.correct
    assert seconds < LIMIT_S


def test_arrays_without_order_are_compared_within_limits() -> None:
    gold = [{"x": i, "y": i % 7} for i in range(3_000)]
    shuffled = random.Random(0).sample(gold, len(gold))
    unordered = JSONSchemaVerifier(array_order=False)
    tolerant = JSONSchemaVerifier(array_order=False, abs_tol=1.0)
    assert timed(json.dumps(shuffled), True, gold, unordered)[0].correct
    for verifier in (unordered, tolerant):
        for wrong in (
            [*shuffled[1:], {"x": -9, "y": -9}],
            [{"x": row["x"] + 0.5, "y": -9} for row in shuffled],
            [{"x": 0, "y": row["y"] + 0.5} for row in shuffled],
        ):
            verdict, seconds = timed(json.dumps(wrong), True, gold, verifier)
            assert verdict.format_valid
            assert not verdict.correct
            assert seconds < LIMIT_S
    # Nothing but near matches, and a chain of moves to find them.
    chain, shifted = list(range(400)), [number + 0.5 for number in reversed(range(400))]
    assert timed(json.dumps(shifted), True, chain, tolerant)[0].correct


@pytest.mark.parametrize("format_name", ["date-time", "email", "idn-email", "hostname", "idn-hostname", "ipv6", "uri"])
@pytest.mark.parametrize("text", ["a" * LONG, "a." * (LONG // 2), "@" * LONG, "a@" + "-" * LONG, ":" * LONG])
def test_formats_are_checked_in_time(format_name: str, text: str) -> None:
    schema = {"type": "string", "format": format_name}
    verdict, seconds = timed(json.dumps(text), schema, None, JSONSchemaVerifier(check_formats=True))
    assert verdict.error is None
    assert seconds < LIMIT_S


@pytest.mark.parametrize("leaf", ["x", 1])
def test_explanations_are_quick_on_recursive_schemas(leaf: Any) -> None:
    branch = {"type": "object", "properties": {"left": REF, "right": REF}, "required": ["left", "right", "op"]}
    operations = [{**branch, "properties": {**branch["properties"], "op": {"const": op}}} for op in "+-*/"]
    for schema in ({"anyOf": [{"type": "number"}, *operations]}, {"oneOf": [{"type": "number"}, *operations]}):
        tree: Any = leaf
        for _ in range(95):
            tree = {"left": tree, "right": 1, "op": "/"}
        verdict, seconds = timed(json.dumps(tree), schema, None)
        assert verdict.correct == (leaf == 1)
        assert seconds < LIMIT_S


def test_a_schema_that_only_refers_to_itself_gets_a_verdict() -> None:
    for schema in (REF, {"allOf": [REF, {"type": "string"}]}, {"allOf": [REF], "type": "string"}, {"not": REF}):
        verdict, seconds = timed("[1]", schema, None)
        assert not verdict.correct or schema == REF
        assert seconds < LIMIT_S


# Isolation


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def test_nothing_is_fetched(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    file = tmp_path / "schema.json"
    file.write_text('{"type": "integer"}')
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
    for place in (url, file.as_uri(), str(file), f"{url}#/$defs/a", url.replace("http", "https"), "//127.0.0.1/a.json"):
        for schema in (
            {"$ref": place},
            {"$dynamicRef": place},
            {"$schema": place},
            {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": place},
            {"$schema": "https://json-schema.org/draft/2019-09/schema", "$recursiveRef": place, "$ref": place},
            {"$id": place, "$ref": "other.json"},
            {"anyOf": [{"$ref": place}, True], "type": "integer"},
        ):
            verdict, seconds = timed("1", schema, 1)
            assert verdict.error is not None, schema
            assert seconds < LIMIT_S
        # Nothing is fetched for what no validation reaches either, and it is no error.
        for schema in ({"$defs": {"unused": {"$ref": place}}}, {"properties": {"a": {"$ref": place}}}):
            verdict, seconds = timed("1", {"type": "integer", **schema}, 1)
            assert verdict.correct
            assert seconds < LIMIT_S
    # A document may hold references: nobody follows them.
    for completion in (json.dumps({"$ref": url}), json.dumps({"$schema": url}), json.dumps([file.as_uri()])):
        assert timed(completion, True, completion)[0].correct
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_it_works_from_many_threads_with_small_stacks() -> None:
    deep = "[" * 99 + '"x"' + "]" * 99
    cases = [("[1]", "[1]"), ("[2]", "[1]"), (deep, "[1]"), ("[" * 100_000, "[1]")] * 8
    before = threading.stack_size(256 * 1024)
    try:
        with ThreadPoolExecutor(8) as pool:
            verdicts = list(
                pool.map(lambda case: judge(VERIFIER, [Sample("", case[0], case[1], {"schema": TREE})])[0], cases)
            )
    finally:
        threading.stack_size(before)
    assert [verdict.error for verdict in verdicts] == [None] * 32
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False] * 8


# Properties

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
CONTAINERS = VALUES.filter(lambda value: isinstance(value, (dict, list)))
FRAGMENTS = st.sampled_from(
    [
        *"{}[]:,\"-. x1\n\0\\'\ufeff\ud800",
        *("e9", "true", "null", "NaN", '"a"', '{"a":', "{}", "[]", '{"a": [1]}', "\\u", "\\ud800", "//", "/*", "$ref"),
        *("```", "```json\n", "\n```\n", "<think>", "</think>"),
    ]
)
TEXTS = st.text(max_size=40) | st.lists(FRAGMENTS, max_size=16).map("".join)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "document": st.just("last"),
        "array_order": st.just(False),
        "key_order": st.just(True),
        "rel_tol": st.just(0.1),
        "extra_fields": st.just(True),
        "check_formats": st.just(True),
    },
)
SURROUNDINGS = st.sampled_from(
    [
        "DOC",
        " \n DOC\n",
        "```json\nDOC\n```",
        "Sure! Here:\n\n```\nDOC\n```\nDone.",
        "See: ```json\nDOC```",
        "<think>Perhaps {} or [2]?</think>DOC",
        "As [2](x) says:\n```json\nDOC\n```",
    ]
)
PROSE = st.sampled_from(["The answer is DOC.", "**DOC**", "<answer>DOC</answer>", "f(x) = DOC\nand that is it."])


def schema_of(value: Any) -> Any:
    """A schema that a document fits if it has the same shape."""
    if isinstance(value, dict):
        properties = {key: schema_of(inner) for key, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(value), "additionalProperties": False}
    if isinstance(value, list):
        return {"type": "array", "items": {"anyOf": [schema_of(inner) for inner in value] or [False]}}
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return {"type": names[type(value)]}


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same document with its keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


def canonical(value: Any) -> Any:
    """Equal for two documents exactly if they are the same JSON value, by another way than the verifier's."""
    if isinstance(value, dict):
        return "object", frozenset((key, canonical(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return "array", tuple(map(canonical, value))
    return ("number" if type(value) in (int, float) else type(value).__name__), value


@given(
    gold=VALUES,
    surrounding=SURROUNDINGS,
    prose=PROSE,
    rng=st.randoms(use_true_random=False),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    ascii_only=st.booleans(),
    separators=st.sampled_from([None, (",", ":"), (" ,", " : ")]),
)
@settings(deadline=None, max_examples=300)
def test_a_gold_document_in_any_writing_scores_1(
    gold: Any, surrounding: str, prose: str, rng: random.Random, indent: Any, ascii_only: bool, separators: Any
) -> None:
    text = json.dumps(shuffled(gold, rng), indent=indent, ensure_ascii=ascii_only, separators=separators)
    assume("think>" not in text)
    for place in (surrounding, prose) if isinstance(gold, (dict, list)) else (surrounding,):
        sample = Sample("", place.replace("DOC", text), json.dumps(gold), {"schema": schema_of(gold)})
        # Where an array is asked for, [2] is another document.
        assume(not (place.startswith("As [2]") and isinstance(gold, list)))
        assert judge(VERIFIER, [sample]) == [Verdict(True, True)]


@given(gold=VALUES, other=VALUES, data=st.data())
@settings(deadline=None, max_examples=400)
def test_another_document_never_scores_1(gold: Any, other: Any, data: st.DataObject) -> None:
    for document in (other, mutated(gold, data)):
        verdict = judge(VERIFIER, [Sample("", json.dumps(document), json.dumps(gold), {"schema": True})])[0]
        assert verdict.error is None
        assert verdict.correct == (canonical(document) == canonical(gold))


def mutated(value: Any, data: st.DataObject) -> Any:
    """A document with one small change somewhere, that may turn out to be none."""
    if isinstance(value, (dict, list)) and value and data.draw(st.booleans()):
        value = copy.copy(value)
        key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        value[key] = mutated(value[key], data)
        return value
    if isinstance(value, dict):
        return data.draw(st.sampled_from([{**value, "": None}, dict(list(value.items())[1:]), [value], list(value)]))
    if isinstance(value, list):
        return data.draw(st.sampled_from([[*value, None], value[1:], value[::-1], value * 2, {"": value}]))
    lookalikes = [None, "", 0, 1, True, False, 0.0, "null", [], {}, str(value), [value], -0.0]
    if isinstance(value, (int, float)):
        lookalikes += [value + 1, -value, bool(value), int(value), value * 1.0000001 if abs(value) < 1e9 else 0]
    return data.draw(st.sampled_from(lookalikes))


@given(
    text=TEXTS | st.tuples(TEXTS, CONTAINERS.map(json.dumps), TEXTS).map("".join),
    schema=st.sampled_from([ANY, TREE, STRICT, PATTERNS, {"type": "integer"}, {"items": REF, "minLength": 1}]),
    options=OPTIONS,
)
@settings(deadline=None, max_examples=500)
def test_a_verdict_comes_for_any_text_and_is_always_the_same(text: str, schema: Any, options: dict) -> None:
    verifier = JSONSchemaVerifier(**options)
    gold = {"extra": "a field"} if options.get("extra_fields") else None
    sample = Sample("", text, gold, {"schema": schema})
    first = verifier.verify(sample)
    assert first.error is None
    assert first.format_valid or not first.correct
    assert (first.feedback == "") == first.correct
    assert len(first.feedback) < 1_000
    assert verifier.verify(sample) == first


# Values that no sentence of a feedback contains by chance.
SECRETS = (
    st.text("QXZJqxzj", min_size=3, max_size=8) | st.integers(100_000) | st.floats(1e5, 1e9).map(lambda x: x + 0.5)
)
# Keys, too, may be values elsewhere.
SECRET_GOLDS = st.recursive(
    SECRETS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.text("QXZJqxzj", min_size=3, max_size=3), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


def telling_schema(value: Any, rng: random.Random) -> Any:
    """A schema that contains the document in as many ways as there are keywords."""
    if isinstance(value, dict):
        kept = {key: telling_schema(inner, rng) for key, inner in value.items()}
        everything: list[dict] = [
            {"properties": kept, "required": list(value), "additionalProperties": False},
            {"properties": kept, "minProperties": len(value)},
            {"patternProperties": {f"^{key}$": inner for key, inner in kept.items()}},
            {"required": [scalar for scalar in scalars(value) if isinstance(scalar, str)][:1]},
            {"if": {"required": list(value)}, "then": {"properties": kept}, "else": False},
            {"anyOf": [{"properties": kept, "required": list(value)}, {"type": "null"}]},
            {"dependentRequired": {key: list(value) for key in value}},
        ]
        fitting = [one for one in everything if timed(json.dumps(value), one, None)[0].correct]
        return {"type": "object", **rng.choice(fitting)}
    if isinstance(value, list):
        inner = [telling_schema(element, rng) for element in value]
        return rng.choice(
            [{"prefixItems": inner, "items": False}, {"allOf": [{"prefixItems": inner}]}, {"enum": [value]}]
        )
    choices: list[dict] = [{"const": value}, {"enum": [value]}, {"oneOf": [{"const": value}]}, {"not": {"const": 0}}]
    if isinstance(value, str):
        choices += [{"pattern": f"^{value}$"}, {"type": "string", "minLength": len(value)}]
    else:
        choices += [{"minimum": value, "maximum": value}, {"multipleOf": value}, {"type": "number"}]
    return rng.choice(choices)


def scalars(value: Any) -> list[Any]:
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return [scalar for element in inner for scalar in scalars(element)]
    return [value]


@given(
    gold=SECRET_GOLDS, other=VALUES | SECRET_GOLDS, rng=st.randoms(use_true_random=False), data=st.data(), text=TEXTS
)
@settings(deadline=None, max_examples=400)
def test_feedback_never_contains_the_gold(
    gold: Any, other: Any, rng: random.Random, data: st.DataObject, text: str
) -> None:
    schema = telling_schema(gold, rng)
    for completion in (json.dumps(other), json.dumps(mutated(gold, data)), text, json.dumps(gold)[:-1], "{}", "[]"):
        verdict = judge(VERIFIER, [Sample("", completion, json.dumps(gold), {"schema": schema})])[0]
        assert verdict.error is None, verdict.error
        for scalar in scalars(gold):
            written = scalar if isinstance(scalar, str) else json.dumps(scalar)
            assert written not in verdict.feedback or written in completion


def test_a_panic_of_the_library_is_an_error_like_any_other() -> None:
    """Found by fuzzing jsonschema_rs 0.60: compiling the parts of this schema panics, which is no ``Exception``."""
    named = {"$dynamicAnchor": "m", "$dynamicRef": "#m", "$id": "http://x/y"}
    schema = {
        "unevaluatedProperties": {"unevaluatedItems": {"prefixItems": [{"$id": "http://x/y"}]}},
        "allOf": [{"type": "string"}],
        "definitions": {"a%b": {"additionalProperties": named}},
    }
    verdict = judge(VERIFIER, [Sample("", "-1", metadata={"schema": schema})])[0]
    if verdict.error is None:
        pytest.skip("this jsonschema_rs does not panic")
    assert verdict.error.startswith("RuntimeError: jsonschema_rs broke on the schema")
