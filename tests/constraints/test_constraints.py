"""Regular expressions and schemas as grammars: which completions they take, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

pytest.importorskip("llguidance", reason="llguidance is an extra: pip install -e '.[constraint]'")

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from grpo_lightning.constraints import Constraint, Regex, RowSchema
from grpo_lightning.constraints.grammar import Grammars, problem_of
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.functional import excluded_tokens
from grpo_lightning.tasks.extraction import SCHEMA
from grpo_lightning.types import Prompt
from tests.tiny import CONFIG_EOS, IM_END, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
GRAMMARS = Grammars(TOKENIZER, 264, [CONFIG_EOS, IM_END])
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def takes(constraint: Constraint, text: str, row: Prompt | None = None) -> bool:
    """Whether a completion may be a text, token by token, and end there."""
    matcher = GRAMMARS.start(constraint.grammar(row or Prompt([])))
    return all(map(matcher.consume_token, TOKENIZER.encode(text, add_special_tokens=False))) and matcher.is_accepting()


def row(schema: Any) -> Prompt:
    return Prompt([], metadata={"schema": schema})


def test_a_regular_expression_is_of_the_whole_completion() -> None:
    assert takes(Regex("yes|no"), "no")
    assert not takes(Regex("yes|no"), "yesno")
    assert not takes(Regex("yes|no"), "ye")
    assert takes(Regex("a/[^b]{2}"), "a/\nc")
    assert not takes(Regex("."), "\n")
    assert takes(Regex(""), "")


@pytest.mark.parametrize(
    ("pattern", "why"), [("(", "unclosed group"), ("(?=a)b", "look-around"), (r"(a)\1", "backreferences")]
)
def test_a_pattern_that_cannot_be_used_has_a_reason(pattern: str, why: str) -> None:
    problem = problem_of(Regex(pattern).grammar(Prompt([])))
    assert problem is not None
    assert why in problem
    assert "\n" not in problem


def test_the_schema_is_that_of_the_row_or_of_the_option(tmp_path: Path) -> None:
    for given in (OBJECT, json.dumps(OBJECT), {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT}}):
        assert takes(RowSchema(), '{"a": 1}', row(given))
        assert not takes(RowSchema(), '{"b": 1}', row(given))
    assert takes(RowSchema(), "7", Prompt([], columns={"schema": {"type": "integer"}}))
    assert takes(RowSchema({"type": "integer"}), "7")
    assert takes(RowSchema({"type": "integer"}), '{"a": 1}', row(OBJECT)), "the row's own comes first"
    (tmp_path / "schema.json").write_text(json.dumps(OBJECT))
    assert takes(RowSchema(str(tmp_path / "schema.json")), '{"a":1}')
    assert takes(RowSchema(), "[null]", row(True))
    with pytest.raises(ConfigError, match=r"RowSchema: the option 'schema' names a file that cannot be read: .*gone"):
        RowSchema(str(tmp_path / "gone.json"))


def test_whitespace_is_limited() -> None:
    for limit, most in ((20, 20), (3, 3), (0, 0)):
        constraint = RowSchema(max_whitespace=limit)
        assert takes(constraint, '{"a":' + "\n" * most + "1}", row(OBJECT))
        assert not takes(constraint, '{"a":' + " " * (most + 1) + "1}", row(OBJECT))
        assert not takes(constraint, ' {"a":1}', row(OBJECT))
    with pytest.raises(ConfigError, match="RowSchema: max_whitespace must not be negative, but is -1"):
        RowSchema(max_whitespace=-1)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (None, r"it has no schema in metadata\['schema'\], and the option 'schema' is not set"),
        ("{", "its schema is not valid JSON: the document is not finished"),
        ("[]", "its schema is not an object"),
        (False, "its schema is not an object"),
    ],
)
def test_a_row_without_a_schema_that_can_be_read_is_refused(schema: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RowSchema().grammar(row(schema))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {"type": "string"}, "then": {"minLength": 1}}, '"if"'),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "minimum"),
        ({"type": "strin"}, "strin"),
    ],
)
def test_a_schema_that_cannot_be_enforced_has_a_reason(schema: Any, why: str) -> None:
    problem = problem_of(RowSchema().grammar(row(schema)))
    assert problem is not None
    assert why in problem


def test_what_is_taken_fits_the_schema() -> None:
    fits = jsonschema_rs.validator_for(dict(SCHEMA)).is_valid
    for text in (
        '{"name": "Anna", "city": null, "items": {"pens": 3}}',
        '{"name":"","city":"Rome","items":{"pens":3,"red hats":12}}',
        '{"name": "Anna", "city": null, "items": {}}',
        '{"name": "Anna", "city": null, "items": {"pens": 0}}',
        '{"name": "Anna", "items": {"pens": 3}}',
        '{"name": "Anna", "city": 3, "items": {"pens": 3}}',
        '{"name": "Anna", "city": null, "items": {"pens": 3}, "more": 1}',
    ):
        assert takes(RowSchema(), text, row(SCHEMA)) == fits(json.loads(text)), text


# -- the tokens ---------------------------------------------------------------------------------------------------


def test_a_completion_may_end_where_its_text_is_complete_and_nowhere_else() -> None:
    grammar = Regex("ab?").grammar(Prompt([]))
    a, b = TOKENIZER.encode("ab", add_special_tokens=False)
    ids = [a, b, IM_END]
    bits_SW, set_NT = GRAMMARS.replay([(grammar, ids), (grammar, ids[:1])])
    allowed = [[v for v in range(264) if int(bits_SW[number, v // 32]) >> v % 32 & 1] for number in set_NT[0]]
    assert allowed == [[a], [CONFIG_EOS, IM_END, b], [CONFIG_EOS, IM_END]]
    assert set_NT[1, 0] == set_NT[0, 0], "equal sets are kept once"
    assert bits_SW.shape == (3, 9)


@pytest.mark.parametrize("vocabulary", [100, 300])
def test_an_output_head_may_have_fewer_or_more_rows_than_the_tokenizer(vocabulary: int) -> None:
    grammars = Grammars(TOKENIZER, vocabulary, [IM_END])
    bits_RW = grammars.allowed([grammars.start(Regex("(?s:.*)").grammar(Prompt([])))])
    excluded_RV = excluded_tokens(bits_RW, vocabulary)
    assert excluded_RV.shape == (1, vocabulary)
    assert not excluded_RV[0, 8:100].all()
    assert excluded_RV[0, 264:].all()


def test_step_by_step_and_replayed_sets_are_equal() -> None:
    ids = [*TOKENIZER.encode('{"a": -12}', add_special_tokens=False), IM_END]
    grammar = RowSchema().grammar(row(OBJECT))
    bits_SW, set_NT = GRAMMARS.replay([(grammar, ids)])
    matcher = GRAMMARS.start(grammar)
    for token, number in zip(ids, set_NT[0], strict=True):
        assert GRAMMARS.allowed([matcher])[0].tolist() == bits_SW[number].tolist()
        GRAMMARS.advance([matcher], [token])


def test_a_completion_that_breaks_its_grammar_is_an_error() -> None:
    with pytest.raises(RunError, match=r"data.sampling.constraint: .*doesn't satisfy the grammar[^\n]*$"):
        GRAMMARS.replay([(Regex("a").grammar(Prompt([])), [100])])


def test_a_tokenizer_without_the_tokens_of_a_text_is_an_error() -> None:
    letters = Tokenizer(models.BPE(vocab={"<end>": 0, "a": 1}, merges=[]))
    letters.decoder = decoders.ByteLevel()
    grammars = Grammars(PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>"), 2, [0])
    matcher = grammars.start(Regex("a[0-9]").grammar(Prompt([])))
    grammars.advance([matcher], [1])
    with pytest.raises(RunError, match=r"data.sampling.constraint: no token of the tokenizer can continue"):
        grammars.allowed([matcher])


class Slow(PreTrainedTokenizer):
    def get_vocab(self) -> dict[str, int]:
        return {}

    def _add_tokens(self, *args: Any, **kwargs: Any) -> int:
        return 0


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs a fast tokenizer; .*: Slow is written in Python"):
        Grammars(Slow(), 2, [0])
