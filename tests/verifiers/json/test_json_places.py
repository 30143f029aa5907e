"""Where JSONSchemaVerifier finds the document: what stands beside it, what is not finished, and whole completions."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo_lightning.types import FinishReason, Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, judge
from grpo_lightning.verifiers.json.reader import NotJSON, Unfinished, _read_nested, parse

AGE = '{"age": 12}'
OTHER = '{"age": 99}'
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
# Refuses one text, since a schema that refuses nothing is an error.
ANY = {"not": {"const": "refused by ANY"}}
MODES: tuple[Literal["only", "last", "whole"], ...] = ("only", "last", "whole")


def verdict(completion: str, document: Any = "only", schema: Any = SCHEMA, gold: Any = None, **options: Any) -> Verdict:
    reason = FinishReason.LENGTH if options.get("accept_truncated") else FinishReason.STOP
    sample = Sample("", completion, gold, {"schema": schema}, finish_reason=reason)
    judged = judge(JSONSchemaVerifier(document=document, **options), [sample])[0]
    assert judged.error is None, judged.error
    return judged


def correct(completion: str, **options: Any) -> str:
    """The modes in which a completion is correct. It is either correct or not even well-formed."""
    judged = {mode: verdict(completion, mode, **options) for mode in MODES}
    assert all(one.correct == one.format_valid for one in judged.values())
    return " ".join(mode for mode in MODES if judged[mode].correct)


# A bracket, quote or comma too many


@pytest.mark.parametrize("stray", ["]", "}", "]]", "}]", " ]", "\n}\n", ",", ", ", '"', '",', ":", ",]", '"""', "`]`"])
@pytest.mark.parametrize("place", ["{}{}", "Here: {}{}", "```json\n{}{}\n```", "```json\n{}\n```\n{}", "```json\n{}{}"])
def test_json_that_belongs_to_nothing_makes_the_document_invalid(stray: str, place: str) -> None:
    assert correct(place.format(AGE, stray)) == ""


@pytest.mark.parametrize(
    "completion",
    [
        '{"a": 1, "b": [2]}]',
        '{"a": 1, "b": [2]]}',
        "[[1]]]",
        f"]{AGE}",
        f"}} {AGE}",
        f'"result": {AGE}',
        f'"{AGE}',
        f"5 {AGE}",
        f"{AGE} 5",
        f"{AGE} null",
        f'{AGE} "x"',
        f"{AGE}, {AGE}",
        f"{AGE}] is what I found",
        f'{AGE}, "b": 2}} is what I found',
        f"So [see {AGE}]]",
    ],
)
def test_text_beside_a_document_that_is_no_prose(completion: str) -> None:
    schema = {"type": ["object", "array"]}
    assert correct(completion, schema=schema).replace("last", "") == ""


@pytest.mark.parametrize(
    "completion",
    [
        f"{AGE} I hope this helps!",
        f"{AGE}.",
        f"{AGE};",
        f"The answer is {AGE}, I think.",
        f'The answer is "{AGE}"',
        f"[in JSON: {AGE}]",
        f"So {{as JSON: {AGE}}} then",
        f"**{AGE}**",
        f"`{AGE}`",
        f"1. {AGE}",
        f"- {AGE}",
        f": {AGE}",
        f"As [1] says: {AGE}",
        f"See {AGE} [1], [2]",
        f"Ages lie in (0, 120], so {AGE} and not in (120, 150].",
        f"```json\n{AGE}\n```\n```",
        f"{AGE}\nAgain: {AGE}",
        f"<answer>{AGE}</answer>",
    ],
)
def test_prose_beside_a_document_is_allowed_unless_it_must_be_the_whole(completion: str) -> None:
    assert correct(completion) == "only last"


def test_in_a_text_without_a_word_every_document_counts() -> None:
    # Among words, [1] is a citation, and no document where an object is asked for.
    assert correct(f"{AGE} [1]") == ""
    assert correct(f"See {AGE} [1]") == "only last"


# Unfinished documents


@pytest.mark.parametrize(
    "rest",
    [
        *('{"age": 99', '{"age": 9', '{"age": ', '{"age":', '{"age"', '{"age', '{"', "{", "{ ", '{"age": 99,', "[{}"),
        *('{"a": "b\\', '{"a": "b\\u00', '{"a": tr', '{"a": nul', '{"a": -', '{"a": 1.', '{"a": 1e', '{"a": {"b": [1]'),
    ],
)
@pytest.mark.parametrize("place", ["{}\n{}", "So: {}\nor {}", "```json\n{}\n```\n```json\n{}", "```json\n{}\n{}"])
def test_an_unfinished_document_is_a_second_one(rest: str, place: str) -> None:
    schema = ANY
    for options in ({}, {"accept_truncated": True}):
        assert correct(place.format(AGE, rest), schema=schema, **options) == ""
        assert correct(rest, schema=schema, **options) == ""
    assert "several" in verdict(place.format(AGE, rest), schema=schema).feedback


def test_an_array_that_begins_after_a_document_is_a_second_one() -> None:
    assert correct(f"{AGE}\n[1, 2") == ""
    assert correct(f"{AGE}\n[") == ""
    # As [1, 2] would be a citation.
    assert correct(f"See {AGE} and [1, 2") == "only last"
    assert correct(f"See {AGE} and [1, 2", schema=ANY) == ""


def test_a_block_that_has_only_begun_is_a_second_document() -> None:
    assert correct(f"```json\n{AGE}\n```\n```json\n") == ""
    assert correct(f"{AGE}\n```json") == ""


@pytest.mark.parametrize(
    "rest",
    ['{"age": broken', '{"age": 99 and so on', "{'age': 99", "{age", "{x in S", "[0, 1) is allowed", '{"a": 01', "[tu"],
)
def test_what_cannot_become_json_is_passed_over(rest: str) -> None:
    assert correct(f"So: {AGE}\nor {rest}", schema={"type": ["object", "array"]}) == "only last"


def test_the_last_document_is_the_unfinished_one() -> None:
    assert correct(f"No: {OTHER}. Yes: {AGE}") == "last"
    assert verdict(f'No: {OTHER}. Yes: {{"age": 12', "last").feedback == (
        "The JSON cannot be read: the document is not finished."
    )


CONTAINERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, (dict, list)))


@settings(deadline=None)
@given(CONTAINERS, st.sampled_from([None, 1, "\t"]), st.booleans(), st.data())
def test_every_beginning_of_a_document_is_unfinished(value: Any, indent: Any, ascii_only: bool, data: Any) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    beginning = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(Unfinished):
        parse(beginning)
    assert not verdict(f"{AGE}\n{beginning}", schema=ANY).format_valid
    assert not verdict(f"{AGE}\n{beginning}", "last", schema=ANY).format_valid


@settings(deadline=None)
@given(st.text(alphabet='{}[]:,"\\ 0-1.eu\ntrfalsn', max_size=20) | CONTAINERS.map(json.dumps))
def test_deep_documents_are_read_as_shallow_ones_are(text: str) -> None:
    """The reader without recursion against the standard library's: the same values, and the same texts refused."""
    assume(text.strip(" \t\r\n"))
    outcomes = []
    for read in (lambda: parse(text).value, lambda: _read_nested(text.strip(" \t\r\n"))):
        try:
            outcomes.append(repr(read()))
        except (NotJSON, json.JSONDecodeError) as error:
            outcomes.append("unfinished" if isinstance(error, Unfinished) else "refused")
    assert outcomes[0] == outcomes[1]


# The whole completion


@pytest.mark.parametrize(
    "place",
    ["{}", " \n{}\t\r\n", "```json\n{}\n```", "```\n{}\n```\n", "````json\n{}\n````", "```json\n{}```",
     "\n```JSON\r\n{}\r\n```", "<think>Perhaps {{}}?</think>\n{}"],
)  # fmt: skip
@pytest.mark.parametrize("document", [AGE, json.dumps(json.loads(AGE), indent=2), "[1]", '"``` x"', "5", "null"])
def test_a_whole_completion_may_be_bare_or_in_one_fence(place: str, document: str) -> None:
    assert verdict(place.format(document), "whole", ANY).correct
    assert verdict(place.format(document), "whole", ANY, gold=document).correct
    assert not verdict(place.format(document), "whole", ANY, gold=OTHER).correct


@pytest.mark.parametrize(
    "place",
    [
        *("Here: {}", "{}.", "{} ok", "**{}**", "`{}`", "{}\n{}", "\ufeff{}", "<answer>{}</answer>", "({})", "\xa0{}"),
        *(
            "```json\n{}\n",
            "```json\n{}\n``",
            "```json\n{}\n````",
            "Here:\n```json\n{}\n```",
            "```json\n{}\n```\nDone.",
        ),
        *("```json {} ```", "```\n```json\n{}\n```\n```", "```json\n{}\n```\n```json\n{}\n```", "```json\n```\n{}"),
        *("```json\n{}\n{}\n```", "```json\nx {}\n```", "~~~\n{}\n~~~"),
    ],
)
def test_anything_else_is_not_the_whole(place: str) -> None:
    judged = verdict(place.format(*[AGE] * place.count("{}")), "whole", ANY)
    assert not judged.format_valid
    assert "Give one JSON document, bare or in one fenced block, alone." in judged.feedback


def test_the_whole_is_what_the_answer_tag_holds() -> None:
    tagged = f"Well.\n<answer>\n{AGE}\n</answer>"
    assert verdict(tagged, "whole", answer_tag="answer").correct
    assert not verdict(f"<answer>So {AGE}</answer>", "whole", answer_tag="answer").correct


@settings(deadline=None)
@given(
    st.text(max_size=30) | CONTAINERS.map(json.dumps) | st.tuples(CONTAINERS.map(json.dumps), st.text()).map("".join)
)
def test_a_bare_whole_is_what_the_standard_library_reads(text: str) -> None:
    """Never more than json.loads takes; less where that is lenient: NaN, numbers out of range, keys twice."""
    if verdict(text, "whole", ANY).correct and "`" not in text and "think" not in text:
        json.loads(text)


# Explanations


@pytest.mark.parametrize(
    ("completion", "gold", "extracted", "expected", "reason"),
    [
        (f"It is {AGE}.", AGE, AGE, AGE, "It fits the schema, and equals the gold document."),
        (f"It is {OTHER}.", AGE, OTHER, AGE,
         "It fits the schema, and does not equal the gold document: $.age differs."),
        (AGE, None, AGE, f"JSON that fits {json.dumps(SCHEMA)}",
         "It fits the schema, and the row has no gold document."),
        ('{"age": "x"}', AGE, '{"age": "x"}', f"JSON that fits {json.dumps(SCHEMA)}",
         "The JSON does not fit the schema. $.age: must be an integer."),
        ("nothing", AGE, "nothing", AGE, "The JSON cannot be read: no document was found."),
        (f"{AGE} {OTHER}", AGE, f"{AGE} {OTHER}", AGE, "There are several different JSON documents. Give exactly one."),
        ("<think>", AGE, "", AGE, "The thought never ends. End it with </think>, then give the answer."),
    ],
)  # fmt: skip
def test_verdicts_explain_themselves(completion: str, gold: Any, extracted: str, expected: str, reason: str) -> None:
    assert verdict(completion, gold=gold).explanation == (extracted, expected, reason)


@pytest.mark.parametrize(
    ("options", "gold", "other", "place"),
    [
        ({}, {"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "$.a[1].b differs"),
        ({}, {"a": 1}, {"a": 1, "b": 2}, "$.b is not in the gold document"),
        ({}, {"a": 1, "b": 2}, {"a": 1}, "$.b is missing"),
        ({}, [1, 2], [1], "$ differs"),
        ({"key_order": True}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, "$ has another order of keys"),
        ({"array_order": False}, {"a": [1, 2]}, {"a": [2, 3]}, "$.a differs"),
        ({"extra_fields": True}, {"a": 1}, {"a": 2, "b": 2}, "$.a differs"),
        ({"fields": ["b.c"]}, {"a": 1, "b": {"c": 1}}, {"a": 2, "b": {"c": 2}}, "$.b.c differs"),
    ],
)
def test_an_explanation_names_the_first_difference(options: dict, gold: Any, other: Any, place: str) -> None:
    judged = verdict(json.dumps(other), schema={}, gold=gold, **options)
    assert judged.explanation is not None
    assert judged.explanation.reason == f"It fits the schema, and does not equal the gold document: {place}."


def test_an_explanation_is_short() -> None:
    text = json.dumps({"age": 1, "x": "y" * 10_000})
    explanation = verdict(text, gold=text).explanation
    assert explanation is not None
    assert explanation.extracted == explanation.expected == text[:300] + "..."
