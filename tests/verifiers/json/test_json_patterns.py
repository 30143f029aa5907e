"""Patterns: ECMA-262's syntax, look-around and back-references, and what takes too many steps."""

from __future__ import annotations

import json

import pytest

from grpo_lightning.verifiers import JSONSchemaVerifier
from grpo_lightning.verifiers.json.ecma import rewritten, rewritten_pattern
from tests.verifiers.json.judged import correct, verdict


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^(?=.*[A-Z]).{8,}$", "Abcdefgh", "abcdefgh"),
        (r"^(?=.*[A-Z])(?=.*[0-9])(?!.*\s).{4,}$", "Ab12", "Ab 12"),
        (r"^(?!admin)\w+$", "user", "admin1"),
        (r"(?<=\$)[0-9]+", "$5", "5"),
        (r"(?<!\$)\b5", "5", "$5"),
        (r"^(\w+) \1$", "ab ab", "ab ba"),
        (r"^(?!.*(.)\1)[a-z]+$", "abc", "abb"),
        (r"^(?!\s)[\S\s]*(?<!\s)$", "a b", " a b"),
        (r"^(?<first>a|b)(c)(?<third>d|e)\2\k<third>\k<first>1$", "acdcda1", "acdced1"),
        (r"^[(](?<q>['`])\(\k<q>$", "('('", "('(`"),
    ],
)
def test_patterns_with_look_around_and_back_references(pattern: str, good: str, bad: str) -> None:
    named = {"patternProperties": {pattern: {"type": "null"}}, "additionalProperties": False}
    for schema, written in (
        ({"type": "string", "pattern": pattern}, json.dumps),
        ({"items": {"anyOf": [{"type": "null"}, {"pattern": pattern}]}}, lambda text: json.dumps([text])),
        (named, lambda text: json.dumps({text: None})),
        ({"$ref": "#/$defs/p", "$defs": {"p": {"pattern": pattern, "minLength": 1}}}, json.dumps),
    ):
        assert correct(written(good), schema)
        assert not correct(written(bad), schema)
    assert "must match the schema's pattern" in verdict(json.dumps(bad), {"pattern": pattern}).feedback
    registered = JSONSchemaVerifier(schemas={"urn:x:p": {"pattern": pattern}})
    assert verdict(json.dumps(good), {"$ref": "urn:x:p"}, None, registered).correct
    assert not verdict(json.dumps(bad), {"$ref": "urn:x:p"}, None, registered).correct


def test_a_pattern_that_takes_too_many_steps_is_no_match_either_way() -> None:
    pattern = r"^(a|a)*(?=b)\1$"
    for schema in (
        {"pattern": pattern},
        {"not": {"pattern": pattern}},
        {"anyOf": [{"pattern": pattern}, {"minLength": 1}]},
    ):
        judged = verdict(json.dumps("a" * 60), schema)
        assert judged.error is None
        assert not judged.format_valid
        assert judged.feedback == "The texts in the JSON are too long for the schema's patterns. Give shorter ones."
    assert correct(json.dumps("b"), {"not": {"pattern": pattern}}) is True
    assert "too long for the schema's patterns" in (
        verdict("1", {"pattern": pattern}, json.dumps("a" * 60)).error or ""
    )


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        # By ECMA-262, 22.2 and Annex B.1.2, by hand.
        (r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$", "a-b.c@d-e.org", "a b@d.org"),
        (r"^[\w-.]+$", "a-.", "a,"),
        (r"^[.-\w]+$", "a-.", "a/"),
        (r"^[\p{Lu}-x]$", "-", "y"),
        (r"^[a-c-e]$", "-", "d"),
        (r"^[^\d-x]$", "y", "-"),
        (r"^[\s--{]$", "{", "a"),
        (r"^[^\d--b]$", "c", "-"),
        (r"^[^]$", "\n", ""),
        (r"^([]|a)$", "a", ""),
        (r"^[\b]$", "\b", "b"),
        (r"\bfoo\b", "a foo", "afoo"),
        (r"^\0$", "\0", "0"),
        (r"^[\0]$", "\0", "0"),
        (r"^a{,3}$", "a{,3}", "aa"),
        (r"^a{b}$", "a{b}", "ab"),
        (r"^{$", "{", ""),
        (r"^a{1,3}$", "aa", "aaaa"),
        (r"^\<a\>$", "<a>", "a"),
        (r"^\ud83d\ude00$", "\U0001f600", "x"),
        (r"^[\ud83d\ude00-\ud83d\ude4f]+$", "\U0001f600\U0001f601", "x"),
        (r"^\u{1f600}$", "\U0001f600", "x"),
        (r"^\[[\]\[]\]$", "[[]", "[]"),
        (r"^\\{2}$", "\\\\", "\\"),
        (r"^.{1,100000}$", "a\U0001f600", ""),
        (r"^[^]{0,1000000}$", "a\n", None),
        (r"^\d{2,100000}$", "12", "1"),
        (r"^[a-z ]{4000}$", "a" * 4000, "a" * 4001),
        (r"^[a-z ]{4000,}$", "a" * 4001, "a" * 3999),
    ],
)
def test_patterns_of_ecma_262(pattern: str, good: str, bad: str | None) -> None:
    for schema in ({"type": "string", "pattern": pattern}, {"not": {"not": {"pattern": pattern}}}):
        assert correct(json.dumps(good), schema)
        assert bad is None or not correct(json.dumps(bad), schema)
    if "000" not in pattern:
        named = {"patternProperties": {pattern: {"type": "null"}}, "additionalProperties": False}
        assert correct(json.dumps({good: None}), named)
        assert bad is None or not correct(json.dumps({bad: None}), named)


def test_a_counted_text_keeps_the_other_bounds_of_its_schema() -> None:
    schema = {"pattern": "^.{2,100000}$", "minLength": 1, "maxLength": 5}
    assert rewritten(schema) == {"pattern": "^.*$", "minLength": 2, "maxLength": 5}
    assert rewritten({"properties": {"const": schema}}) == {"properties": {"const": rewritten(schema)}}
    assert rewritten({"const": schema}) == {"const": schema}


@pytest.mark.parametrize(
    "pattern", ["^[a-z]+$", r"^(?<q>a)\1$", r"(?<=\$)[0-9]{2,}", r"^\p{L}\/[^\]]$", "[[a]", "^a&&b$"]
)
def test_what_the_engines_read_in_the_same_way_stays_as_it_is(pattern: str) -> None:
    assert rewritten_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["(", "[a", "a|*", "[z-a]", "(?#c)a"])
def test_a_broken_pattern_is_an_error_that_names_it(pattern: str) -> None:
    assert f'"{pattern}" is not a "regex"' in (verdict('"a"', {"pattern": pattern}).error or "")
