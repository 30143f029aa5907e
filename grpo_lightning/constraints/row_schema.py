"""Completions that are JSON by the schema of their row."""

from __future__ import annotations

from functools import lru_cache

from grpo_lightning.constraints.base import Constraint
from grpo_lightning.constraints.grammar import library
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.json.reader import NotJSON, parse, write
from grpo_lightning.verifiers.json.row_schema import configured_schema, json_text, unwrap


class RowSchema(Constraint):
    """The completion is one JSON document that fits the row's JSON Schema, and nothing else.

    The schema is ``metadata["schema"]`` or the column ``schema``, as an object or a JSON text, and may come in a
    vendor's wrapping, as for :class:`~grpo_lightning.verifiers.JSONSchemaVerifier`. The keys of an object come in the
    order of ``properties``. A schema with a keyword that llguidance cannot enforce, such as ``not``, ``if`` or
    ``uniqueItems``, is refused.

    Args:
        schema: the schema of rows without one of their own, as an object or the path of a JSON file.
        max_whitespace: the most spaces, tabs and line breaks in one place between tokens of the JSON; 0 for none. (JSON
            allows any number, and a policy that likes them would never end.)

    Raises:
        ConfigError: an option is out of its range, or the file cannot be read.
    """

    def __init__(self, schema: dict | str | None = None, max_whitespace: int = 20) -> None:
        if max_whitespace < 0:
            raise ConfigError(f"RowSchema: max_whitespace must not be negative, but is {max_whitespace}")
        self.schema = None if schema is None else configured_schema(schema, "RowSchema")
        self.max_whitespace = max_whitespace

    def grammar(self, prompt: Prompt) -> str:
        given = prompt.metadata.get("schema", prompt.columns.get("schema"))
        text = self.schema if given is None else json_text(given, "its schema")
        if text is None:
            raise ValueError("it has no schema in metadata['schema'], and the option 'schema' is not set")
        return _grammar(text, self.max_whitespace)


@lru_cache(maxsize=4096)
def _grammar(schema: str, max_whitespace: int) -> str:
    try:
        plain = unwrap(parse(schema).value)
    except NotJSON as refusal:
        raise ValueError(f"its schema is not valid JSON: {refusal}") from refusal
    if plain is True:
        plain = {}
    if not isinstance(plain, dict):
        raise ValueError("its schema is not an object")
    whitespace = f"[ \\n\\t]{{1,{max_whitespace}}}"
    options = {"whitespace_pattern": whitespace} if max_whitespace else {"whitespace_flexible": False}
    return str(library().LLMatcher.grammar_from_json_schema(write(plain), defaults=options))
