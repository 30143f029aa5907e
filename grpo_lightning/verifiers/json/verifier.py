"""Judges JSON: whether a completion is one document that fits a JSON Schema, and whether it equals the gold one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from grpo_lightning.errors import ConfigError, first_line
from grpo_lightning.types import Explanation, Prompt, Sample, Verdict
from grpo_lightning.verifiers._options import require, require_max_chars, require_tolerances
from grpo_lightning.verifiers.answer_text import AnswerReader
from grpo_lightning.verifiers.base import Verifier
from grpo_lightning.verifiers.json.compare import (
    Equality,
    TooManyPairs,
    difference,
    field_tree,
    has_selected,
    select,
)
from grpo_lightning.verifiers.json.documents import read_documents
from grpo_lightning.verifiers.json.extract import Document, find_documents, whole_document
from grpo_lightning.verifiers.json.patterns import TooComplicated
from grpo_lightning.verifiers.json.reader import Json, NotJSON, parse
from grpo_lightning.verifiers.json.row_schema import configured_schema, json_text, read_row_schema
from grpo_lightning.verifiers.json.rules import Problem, Schema, spelled

# None of these shows a value, neither of the gold document nor of the schema.
_WRONG = "The JSON fits the schema, but not all of its values are correct. Check each of them."
_TOO_MANY_PAIRS = "The JSON fits the schema, but its arrays are too much alike to compare."
_SEVERAL = "There are several different JSON documents. Give exactly one."
_TOO_LONG = "The completion is too long to check. Give a shorter one."
_TOO_COMPLICATED = "The texts in the JSON are too long for the schema's patterns. Give shorter ones."

_same = Equality()

# With what was thought: looking for the thoughts takes time, too.
_MAX_COMPLETION_CHARS = 2_000_000
# What explanations show of a text.
_MAX_SHOWN = 300


class JSONSchemaVerifier(Verifier):
    """Checks that a completion is JSON that fits a schema, and equals the gold document if the row has one.

    The format is valid where there is exactly one JSON document and it fits the schema in ``metadata["schema"]`` (an
    object, or its JSON text), or the one given here. The completion is correct where the document also equals
    ``answer``: the gold object, or any JSON value as JSON text. Without an answer, every document that fits is correct.

    Where the document is read: the whole text, a fenced block that is nothing but the document, or inside prose. What
    was thought is not read, and neither is a document inside a string or inside broken JSON. The same document given
    twice is one. In prose, ``[1]`` is not a document where the schema asks for an object. A document that is begun
    and not finished counts as one, and a bracket, quote or comma too many beside a document makes it invalid.

    JSON is read strictly: no comments, trailing commas, NaN or Infinity, no key twice in an object, no numbers beyond
    the range of a double, no nesting deeper than 10,000. As in JSON Schema, 1.0 is an integer and equals 1, and true
    is no number. The draft is the schema's ``$schema``, and 2020-12 without one. A schema may come in the wrapping of a
    vendor's request, such as OpenAI's ``response_format``.

    A schema may refer to the documents of ``schemas``, by their URIs, and to no others: nothing is ever fetched, and no
    file is read because a schema names it.

    A row is an error if its schema is missing or invalid, constrains nothing, or has a misspelled keyword; if its gold
    document does not fit the schema; and where a document reaches a reference that is not registered. ``true`` and
    ``{}`` are for rows with a gold document. A document on which a pattern with look-around or back-references takes
    too many steps has no valid format. Feedback names the place and the rule that is broken, never a value of the gold
    document or of the schema.

    Args:
        schema: the schema of rows without one of their own, as an object or the path of a JSON file.
        schemas: other documents that schemas may refer to: objects or paths of JSON files by URI, or the path of a
            folder, each ``.json`` file in which is known by its ``$id``.
        document: whether there must be ``only`` one document, the ``last`` one counts, or one must be the ``whole``
            text, bare or in one fenced block.
        array_order: whether arrays must have the gold's order.
        key_order: whether objects must have the gold's order of keys.
        rel_tol: how far numbers may be off, as a part of the gold number; integers, too.
        abs_tol: how far numbers may be off; integers, too.
        extra_fields: whether objects may have keys that the gold lacks. The gold may be a part of a document then, and
            is not checked against the schema.
        fields: the only fields to compare, everywhere else whatever fits the schema is correct. Dots lead into objects,
            and into the objects of arrays: ``["total", "items.price"]``.
        check_formats: whether ``format`` in a schema (``date``, ``email``, ...) is checked.
        max_chars: longer completions, not counting what was thought, are not read, and have no valid format.
        reward_correct: reward of a correct completion.
        reward_format: reward of a completion that has only the format right.
        reward_wrong: reward of everything else.
        accept_truncated: whether a completion that was cut off at the token limit can be correct or well-formed.
        thought_tags: the tags of thoughts, which are not read: names, or opening tags as they are written.
        answer_tag: if given, the answer is read inside this tag alone, and must be there.

    Raises:
        ConfigError: an option is out of range, or a schema cannot be used.
    """

    def __init__(
        self,
        # Not dict[str, Any]: jsonargparse reads strings typed Any as YAML, "42" becomes 42 and "#/a" becomes None.
        schema: dict | str | None = None,
        schemas: dict | str | None = None,
        document: Literal["only", "last", "whole"] = "only",
        array_order: bool = True,
        key_order: bool = False,
        rel_tol: float = 0.0,
        abs_tol: float = 0.0,
        extra_fields: bool = False,
        fields: Sequence[str] = (),
        check_formats: bool = False,
        max_chars: int = 250_000,
        reward_correct: float = 1.0,
        reward_format: float = 0.5,
        reward_wrong: float = 0.0,
        accept_truncated: bool = False,
        thought_tags: Sequence[str] = ("think",),
        answer_tag: str | None = None,
    ) -> None:
        super().__init__(reward_correct, reward_format, reward_wrong, accept_truncated)
        self._reader = AnswerReader(thought_tags, answer_tag)
        documents = ("only", "last", "whole")
        require(document in documents, "JSONSchemaVerifier.document", f"one of {', '.join(documents)}", document)
        require_max_chars("JSONSchemaVerifier", max_chars)
        require_tolerances("JSONSchemaVerifier", rel_tol, abs_tol)
        self.document = document
        self.equality = Equality(array_order, key_order, rel_tol, abs_tol, extra_fields)
        self.fields = field_tree(fields)
        self.check_formats = check_formats
        self.max_chars = max_chars
        self._documents = () if schemas is None else read_documents(schemas)
        self._schema_text = None if schema is None else configured_schema(schema, "JSONSchemaVerifier")
        if self._schema_text is not None:
            try:
                read_row_schema(self._schema_text, check_formats, self._documents)
            except ValueError as error:
                raise ConfigError(f"JSONSchemaVerifier.schema: {first_line(error)}") from error

    def verify(self, sample: Sample) -> Verdict:
        """Judge one completion.

        Raises:
            ValueError: the schema or the gold document is missing or broken, or they do not fit together, or the
                schema refers to a document that is not registered, and this completion depends on it.
        """
        schema = self._schema(sample.metadata, sample.answer)
        gold = None if sample.answer is None else self._gold(sample.answer, schema)
        expected = shortened(gold.text if gold else f"JSON that fits {schema.text}")
        if len(sample.completion) > _MAX_COMPLETION_CHARS:
            return _unread(_TOO_LONG, "", expected)
        text, problem = self._reader.read(sample)
        if problem:
            return _unread(problem, "", expected)
        if len(text) > self.max_chars:
            return _unread(_TOO_LONG, text, expected)
        try:
            document = self._document(text, schema)
            fits = schema.fits(document.value, document.deep)
        except NotJSON as refusal:
            return _unread(f"The JSON cannot be read: {refusal}.", text, expected)
        except _Several:
            return _unread(_SEVERAL, text, expected)
        except TooComplicated:
            return _unread(_TOO_COMPLICATED, text, expected)
        if not fits:
            return _unfit(schema.problem(document.value, len(text), document.deep), document, gold, schema)
        extracted = shortened(document.text)
        if gold is None:
            return _correct(extracted, expected, "It fits the schema, and the row has no gold document.")
        selected = select(document.value, self.fields)
        try:
            equal = self.equality(gold.value, selected)
        except TooManyPairs:
            explanation = Explanation(
                extracted, expected, "It fits the schema, but is too much like the gold to compare."
            )
            return Verdict(False, True, _TOO_MANY_PAIRS, explanation=explanation)
        if equal:
            return _correct(extracted, expected, "It fits the schema, and equals the gold document.")
        place, how = difference(self.equality, gold.value, selected)
        reason = f"It fits the schema, and does not equal the gold document: {spelled(place)} {how}."
        return Verdict(False, True, _WRONG, explanation=Explanation(extracted, expected, reason))

    def require(self, prompt: Prompt) -> None:
        self._schema(prompt.metadata, prompt.answer)

    def _document(self, text: str, schema: Schema) -> Document:
        """The document that counts.

        Raises:
            NotJSON: there is none.
            _Several: there are different ones.
        """
        if self.document == "whole":
            try:
                return whole_document(text)
            except NotJSON as refusal:
                raise NotJSON(f"{refusal}. Give one JSON document, bare or in one fenced block, alone") from refusal
        documents = find_documents(text)
        candidates = [one for one in documents if one.apart or schema.takes_kind(one.text)]
        # Where nothing is left, the feedback is about what there is.
        document, *others = reversed(candidates or documents)
        others = others if self.document == "only" else []
        if not all(_same(document.value, other.value) for other in others):
            raise _Several
        for one in (document, *others):
            if one.problem:
                raise NotJSON(one.problem)
        return document

    def _schema(self, metadata: Mapping[str, Any], answer: object) -> Schema:
        schema = metadata.get("schema")
        text = self._schema_text if schema is None else json_text(schema, "the schema in metadata['schema']")
        if text is None:
            raise ValueError("JSONSchemaVerifier needs a schema in metadata['schema'], or its option 'schema'")
        row = read_row_schema(text, self.check_formats, self._documents)
        if row.takes_all and answer is None:
            raise ValueError(
                "the schema is true or {}, and there is no gold document in 'answer': every JSON document would be "
                "correct. Give one of the two"
            )
        return row.schema

    def _gold(self, answer: object, schema: Schema) -> _Gold:
        try:
            gold = parse(json_text(answer, "the gold document in 'answer'"))
        except NotJSON as refusal:
            raise ValueError(f"the gold document in 'answer' is not valid JSON: {refusal}") from refusal
        try:
            if not self.equality.extra_fields and not schema.fits(gold.value, gold.deep):
                raise ValueError(f"the gold document in 'answer' does not fit the schema: {shortened(gold.text)}")
        except TooComplicated as error:
            raise ValueError("the gold document in 'answer' is too long for the schema's patterns") from error
        if self.fields and not has_selected(gold.value, self.fields):
            raise ValueError(f"the gold document in 'answer' has none of the fields to compare: {shortened(gold.text)}")
        return _Gold(select(gold.value, self.fields), gold.text)


class _Gold(NamedTuple):
    """What the document must equal; its value may be None, JSON's null. And how the row writes it."""

    value: Json
    text: str


class _Several(Exception):
    """There are different documents."""


def _correct(extracted: str, expected: str, reason: str) -> Verdict:
    return Verdict(True, True, explanation=Explanation(extracted, expected, reason))


def _unread(feedback: str, text: str, expected: str) -> Verdict:
    return Verdict(False, False, feedback, explanation=Explanation(shortened(text), expected, feedback))


def _unfit(problem: Problem, document: Document, gold: _Gold | None, schema: Schema) -> Verdict:
    # The name of a property comes from the schema, and may be a gold value elsewhere: {"type": "circle", "circle": 1}.
    golds = _scalars(gold.value) if gold and problem.missing else ()
    name_missing = not any(scalar in problem.missing for scalar in golds)
    reason = f"The JSON does not fit the schema. {problem.text(name_missing=True)}."
    explanation = Explanation(shortened(document.text), shortened(f"JSON that fits {schema.text}"), reason)
    feedback = f"The JSON does not fit the schema. {problem.text(name_missing)}."
    return Verdict(False, False, feedback, explanation=explanation)


def _scalars(value: Json) -> Iterator[str]:
    """The strings, numbers, true, false and null of a document as texts."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
        elif value != "":
            yield value if isinstance(value, str) else json.dumps(value)


def shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
