"""Schemas that are split over several documents: registered ones are found, and nothing else is."""

from __future__ import annotations

import json
import pickle
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, judge

ROOT = Path(__file__).parents[3]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
BASE = "https://example.org/schemas/"
ITEM = {"type": "object", "properties": {"count": {"$ref": "numbers.json#/$defs/count"}}, "required": ["count"]}
NUMBERS = {"$defs": {"count": {"type": "integer", "minimum": 1}, "small one": {"type": "integer", "maximum": 9}}}
DOCUMENTS: dict[str, Any] = {f"{BASE}item.json": ITEM, f"{BASE}numbers.json": NUMBERS}
ORDER = {"type": "object", "properties": {"items": {"type": "array", "items": {"$ref": f"{BASE}item.json"}}}}


def verdict(verifier: JSONSchemaVerifier, completion: str, schema: Any = None, gold: Any = None) -> Verdict:
    return judge(verifier, [Sample("", completion, gold, {} if schema is None else {"schema": schema})])[0]


def feedback(verifier: JSONSchemaVerifier, completion: str, schema: Any) -> str:
    judged = verdict(verifier, completion, schema)
    assert judged.error is None
    assert not judged.correct
    return judged.feedback.removeprefix("The JSON does not fit the schema. ")


def test_a_schema_may_refer_to_registered_documents_and_they_to_each_other() -> None:
    registered, alone = JSONSchemaVerifier(schemas=DOCUMENTS), JSONSchemaVerifier()
    assert verdict(registered, '{"items": [{"count": 1}]}', ORDER).correct
    assert not verdict(registered, '{"items": [{"count": 0}]}', ORDER).correct
    assert "is not present" in (verdict(alone, '{"items": [{"count": 1}]}', ORDER).error or "")
    # And the option's own schema, and the text of one.
    assert verdict(JSONSchemaVerifier(ORDER, DOCUMENTS), '{"items": [{"count": 1}]}').correct
    assert not verdict(registered, '{"items": [1]}', json.dumps(ORDER)).correct


def test_feedback_leads_into_registered_documents() -> None:
    verifier = JSONSchemaVerifier(schemas=DOCUMENTS)
    assert (
        feedback(verifier, '{"items": [{"count": 2}, {}]}', ORDER) == '$.items[1]: lacks a required property "count".'
    )
    too_small = "$.items[0].count: must not be below the schema's minimum."
    assert feedback(verifier, '{"items": [{"count": 0}]}', ORDER) == too_small
    relative = {"$id": f"{BASE}order.json", "items": {"$ref": "numbers.json#/$defs/small%20one"}}
    assert feedback(verifier, "[1, 10]", relative) == "$[1]: must not be above the schema's maximum."
    # A part with an $id of its own is not followed, and not taken for the whole schema either.
    embedded = {"items": {"$ref": "urn:x:own"}, "$defs": {"own": {"$id": "urn:x:own", "type": "string"}}}
    assert feedback(verifier, "[1]", embedded) == "$[0]: breaks the schema's rule $ref."


def test_a_gold_document_is_checked_against_the_registered_schemas() -> None:
    verifier = JSONSchemaVerifier(schemas=DOCUMENTS)
    assert verdict(verifier, '{"items": [{"count": 2}]}', ORDER, {"items": [{"count": 2}]}).correct
    assert "does not fit" in (verdict(verifier, "{}", ORDER, {"items": [{"count": 0}]}).error or "")


def test_a_folder_registers_its_files_by_their_ids(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "item.json").write_text(json.dumps(ITEM | {"$id": f"{BASE}item.json"}))
    (below / "numbers.json").write_text(json.dumps(NUMBERS | {"$id": f"{BASE}numbers.json#", "$schema": DRAFT_7}))
    (tmp_path / "README.md").write_text("not a schema")
    verifier = JSONSchemaVerifier(schemas=str(tmp_path))
    # The documents have been read: the verifier is sent to other processes without their files.
    (tmp_path / "item.json").unlink()
    for one in (verifier, pickle.loads(pickle.dumps(verifier))):
        assert verdict(one, '{"items": [{"count": 1}]}', ORDER).correct
        assert not verdict(one, '{"items": [{"count": 0}]}', ORDER).correct


def test_a_mapping_may_name_files(tmp_path: Path) -> None:
    file = tmp_path / "anything.json"
    file.write_text('{"type": "integer"}')
    verifier = JSONSchemaVerifier(schemas={"urn:example:number": str(file)})
    assert verdict(verifier, "1", {"$ref": "urn:example:number"}).correct
    assert not verdict(verifier, '"1"', {"$ref": "urn:example:number"}).correct
    # The file has one name, and it is the one that was given.
    for other in (file.as_uri(), str(file), "anything.json"):
        assert verdict(verifier, "1", {"$ref": other}).error is not None


@pytest.mark.parametrize(
    ("schemas", "message"),
    [
        ({"a.json": {}}, "needs an absolute URI"),
        ({"urn:x:a": {}, "urn:x:a#": {}}, "the URI of another document"),
        ({"urn:x:a": {"type": "strnig"}}, "the schema of urn:x:a cannot be used"),
        ({"urn:x:a": {"pattern": r"(a)\2"}}, "the schema of urn:x:a cannot be used"),
        ({"urn:x:a": {"const": float("nan")}}, "is not JSON"),
        ({"urn:x:a": "/nowhere/a.json"}, "cannot be read"),
        ({"urn:x:a": {"$ref": "urn:x:b"}}, "urn:x:b is not registered"),
        ({"urn:x:a": {"$ref": "file:///etc/hostname"}}, "file:///etc/hostname is not registered"),
        ("/nowhere", "no .json file"),
    ],
)
def test_documents_that_cannot_be_used_are_refused(schemas: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="the option 'schemas'") as refused:
        JSONSchemaVerifier(schemas=schemas)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "needs an absolute URI"), ("{", "is not valid JSON"), ("[]", "needs an absolute")]
)
def test_a_folder_with_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        JSONSchemaVerifier(schemas=str(tmp_path))


def test_nothing_is_fetched_and_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    secret = tmp_path / "secret.json"
    secret.write_text('{"type": "integer"}')
    verifier = JSONSchemaVerifier(schemas=DOCUMENTS)
    for place in (secret.as_uri(), str(secret), "http://127.0.0.1:9/a.json", f"{BASE}other.json", "//example.org/a"):
        for schema in (
            {"$ref": place},
            {"$dynamicRef": place},
            {"$id": f"{BASE}own.json", "items": {"$ref": place}},
            {"allOf": [{"$ref": place}, ORDER]},  # reached before a number is refused
            {"$schema": place},
        ):
            # What the second of them asks for, no number reaches.
            assert verdict(verifier, "[1]", schema).error is not None, schema
            with pytest.raises(ConfigError):
                JSONSchemaVerifier(schemas={**DOCUMENTS, f"{BASE}bad.json": schema})


def test_documents_that_lead_in_circles_get_a_verdict() -> None:
    circle = {"urn:x:a": {"$ref": "urn:x:b"}, "urn:x:b": {"anyOf": [{"$ref": "urn:x:a"}, {"type": "string"}]}}
    tree = {"urn:x:t": {"anyOf": [{"type": "number"}, {"type": "array", "items": {"$ref": "urn:x:t"}}]}}
    verifier = JSONSchemaVerifier(schemas={**circle, **tree})
    for completion, schema in (
        ('"a"', {"$ref": "urn:x:a"}),
        ("1", {"$ref": "urn:x:b"}),
        ("[" * 99 + '"x"' + "]" * 99, {"$ref": "urn:x:t"}),
    ):
        assert verdict(verifier, completion, schema).error is None


def test_patterns_of_registered_documents_take_linear_time() -> None:
    verifier = JSONSchemaVerifier(schemas={"urn:x:a": {"pattern": "^(a+)+$"}})
    assert not verdict(verifier, json.dumps("a" * 100_000 + "!"), {"$ref": "urn:x:a"}).correct


def test_the_benchmark_scores_a_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "remotes/draft7").mkdir(parents=True)
    (tmp_path / "remotes/integer.json").write_text('{"type": "integer"}')
    (tmp_path / "remotes/draft7/old.json").write_text('{"$ref": "nowhere.json"}')
    (tmp_path / "tests/draft2020-12").mkdir(parents=True)
    remote, unknown = {"$ref": "http://localhost:1234/integer.json"}, {"$ref": "http://localhost:1234/none.json"}
    tests = [{"description": "one", "data": 1, "valid": True}, {"description": "x", "data": "x", "valid": False}]
    lie = [{"description": "a lie", "data": 1, "valid": False}]
    groups = [(remote, tests), (unknown, tests[:1]), (remote, lie)]
    file = tmp_path / "tests/draft2020-12/ref.json"
    file.write_text(json.dumps([{"description": "g", "schema": schema, "tests": tests} for schema, tests in groups]))
    monkeypatch.setattr(sys, "argv", ["json_suite.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "benchmarks/json_suite.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "draft2020-12: 2 of 4 right, 1 wrong, 1 errors"
    assert lines[-2] == "wrong: ref.json: g: a lie: valid"


def test_a_misspelled_keyword_of_a_registered_document_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x:item has an unknown keyword 'require': did you mean 'required'\?"):
        JSONSchemaVerifier(schemas={"x:item": {"type": "object", "require": ["a"]}})
