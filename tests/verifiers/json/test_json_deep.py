"""Documents nested deeper than recursion goes: valid ones are valid, in any thread, whatever is asked of them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, judge
from grpo_lightning.verifiers.json.compare import Equality, has_selected, select
from grpo_lightning.verifiers.json.reader import MAX_DEPTH, SHALLOW, write

REF = {"$ref": "#"}
TREE = {"anyOf": [{"type": "null"}, {"type": "array", "items": REF}, {"type": "object", "additionalProperties": REF}]}


def arrays(depth: int, leaf: str = "null") -> str:
    return "[" * depth + leaf + "]" * depth


def objects(depth: int, leaf: str = "null") -> str:
    return '{"a":' * depth + leaf + "}" * depth


def verdict(completion: str, schema: Any, gold: Any = None, **options: Any) -> Verdict:
    judged = judge(JSONSchemaVerifier(**options), [Sample("", completion, gold, {"schema": schema})])[0]
    assert judged.error is None, judged.error
    return judged


def in_a_small_thread(call: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize(("depth", "thread"), [(SHALLOW, "this"), (SHALLOW + 1, "this"), (2_000, "small")])
def test_deep_documents_are_judged_as_shallow_ones_are(depth: int, thread: str) -> None:
    def check() -> None:
        for text, other, kind in (
            (arrays(depth), arrays(depth, "1"), "array"),
            (objects(depth), objects(depth, "1"), "object"),
        ):
            assert verdict(text, {"type": kind}).correct
            assert verdict(f"So: {text} it is", {"type": kind}).correct
            assert verdict(f"```json\n{text}\n```", {"type": kind}, document="whole").correct
            assert verdict(text, TREE).correct
            assert not verdict(other, TREE).format_valid
            assert not verdict(text, {"type": "string"}).format_valid
            assert not verdict(text[:-1], {"type": kind}).format_valid
            assert not verdict(text[:-1] + ")", {"type": kind}).format_valid
            for options in ({}, {"array_order": False}, {"key_order": True}, {"rel_tol": 0.1}, {"extra_fields": True}):
                assert verdict(text, TREE, text, **options).correct
                judged = verdict(other, {"type": kind}, text, **options)
                assert judged.format_valid
                assert not judged.correct
        assert verdict(objects(depth), TREE, objects(depth), fields=["a"]).correct

    in_a_small_thread(check) if thread == "small" else check()


@pytest.mark.slow
def test_a_document_may_be_as_deep_as_the_limit_in_a_small_thread() -> None:
    def check() -> None:
        for nested in (arrays, objects):
            text = nested(MAX_DEPTH)
            assert not verdict(nested(MAX_DEPTH, "1"), TREE).format_valid
            assert verdict(text, TREE, text).correct
            assert verdict(text, TREE, text, array_order=False).correct
            assert not verdict(nested(MAX_DEPTH, "1"), {}, text).correct

    in_a_small_thread(check)


@pytest.mark.parametrize("text", [arrays(MAX_DEPTH + 1), objects(MAX_DEPTH + 1), "[" * 200_000, arrays(100_000)])
def test_beyond_the_limit_no_document_is_read(text: str) -> None:
    schema = {"type": ["array", "object"]}
    assert verdict(text, schema).feedback == "The JSON cannot be read: it is nested too deeply."
    assert not verdict(text, schema, document="whole").format_valid


def test_a_gold_document_may_be_deep_as_an_object_too() -> None:
    gold: Any = None
    for _ in range(5_000):
        gold = [gold]
    assert verdict(arrays(5_000), {"type": "array"}, gold).correct
    assert not verdict(arrays(4_999), {"type": "array"}, gold).correct
    for _ in range(MAX_DEPTH):
        gold = [gold]
    deeper = judge(JSONSchemaVerifier(), [Sample("", "[]", gold, {"schema": {"type": "array"}})])[0]
    assert "nested too deeply" in (deeper.error or "")


def test_a_deep_schema_is_an_error() -> None:
    schema = '{"items":' * 200 + "{}" + "}" * 200
    judged = judge(JSONSchemaVerifier(), [Sample("", "[]", None, {"schema": schema})])[0]
    assert "nested too deeply" in (judged.error or "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from([0.0, 1.0, "", "a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=10,
)


def sorted_by_text(value: Any) -> Any:
    """A document with its arrays sorted, numbers as floats: equal exactly if equal without order."""
    if isinstance(value, dict):
        return {key: sorted_by_text(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return sorted(map(sorted_by_text, value), key=json.dumps)
    return float(value) if type(value) is int else value


@settings(deadline=None, max_examples=150)
@given(VALUES, VALUES, st.sampled_from([0, 1, 3, 1_500]), st.randoms(use_true_random=False))
def test_equality_without_order_does_not_depend_on_depth(gold: Any, other: Any, depth: int, rng: Any) -> None:
    shuffled = rng.sample(gold, len(gold)) if isinstance(gold, list) else gold
    for document in (other, shuffled):
        expected = json.dumps(sorted_by_text(gold)) == json.dumps(sorted_by_text(document))
        deep_gold, deep_document = gold, document
        for _ in range(depth):
            deep_gold, deep_document = [deep_gold, 1], [1, deep_document]
        assert Equality(array_order=False)(deep_gold, deep_document) == expected


def test_selected_fields_lie_at_any_depth() -> None:
    document: Any = {"a": 1, "b": 2}
    for _ in range(5_000):
        document = [document]
    selected = select(document, {"a": {}})
    while isinstance(selected, list):
        (selected,) = selected
    assert selected == {"a": 1}
    assert has_selected(document, {"b": {}})
    assert not has_selected(document, {"c": {}})


@settings(deadline=None)
@given(VALUES)
def test_writing_without_recursion_is_what_the_standard_library_writes(value: Any) -> None:
    from grpo_lightning.verifiers.json.reader import _write_nested

    assert _write_nested(value) == json.dumps(value) == write(value)


def test_the_recursion_limit_is_left_alone() -> None:
    threading.stack_size(0)  # the default; asking without an argument would set it, too
    before = sys.getrecursionlimit()
    assert verdict(arrays(2_000), TREE).correct
    assert (sys.getrecursionlimit(), threading.stack_size(0)) == (before, 0)


def test_unique_items_are_compared_255_levels_deep() -> None:
    verifier = JSONSchemaVerifier()
    for schema in ({"type": "array", "uniqueItems": True}, {"not": {"type": "array", "uniqueItems": True}}):
        unique = "not" not in schema
        for depth, fits in ((255, not unique), (256, False), (3000, False)):
            item = "[" * depth + "]" * depth
            judged = judge(verifier, [Sample("", f"[{item}, {item}]", None, {"schema": schema})])[0]
            assert judged.error is None
            assert judged.correct == fits
            assert ("too deeply" in judged.feedback) == (depth > 255)
    item = "[" * 256 + "]" * 256
    sample = Sample("", "[1]", f"[{item}, {item}]", {"schema": {"type": "array", "uniqueItems": True}})
    assert "too deeply for uniqueItems" in (judge(verifier, [sample])[0].error or "")


def test_a_problem_elsewhere_in_a_deep_document_has_a_verdict() -> None:
    item = "[" * 300 + "]" * 300
    schema = {"type": "array", "maxItems": 1, "uniqueItems": True, "items": {"type": "array"}}
    judged = judge(JSONSchemaVerifier(), [Sample("", f"[{item}, {item}]", None, {"schema": schema})])[0]
    assert judged.error is None
    assert not judged.format_valid
