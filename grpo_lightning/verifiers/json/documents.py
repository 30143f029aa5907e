"""Registered schema documents: what the schemas of a run may refer to. Nothing else is ever read or fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers.json import patterns
from grpo_lightning.verifiers.json.misspelled import misspelled
from grpo_lightning.verifiers.json.reader import SHALLOW, Json, NotJSON, parse

if TYPE_CHECKING:
    from jsonschema_rs import Registry

Documents = tuple[tuple[str, str], ...]
"""Pairs of an absolute URI and the JSON text of the schema there. Plain texts, so that they can be hashed and sent."""


def read_documents(schemas: Mapping[str, dict | bool | str] | str) -> Documents:
    """Read what a user registers.

    Args:
        schemas: schemas, or paths of their files, by URI; or the path of a folder, each ``.json`` file of which, also
            in folders below, is registered as the URI in its ``$id``.

    Raises:
        ConfigError: a file cannot be read or is not JSON, a URI is not absolute or taken, or a document is no schema or
            refers to one that is not registered.
    """
    documents: dict[str, str] = {}
    for uri, text, where in _in_folder(schemas) if isinstance(schemas, str) else _by_uri(schemas):
        if not urlsplit(uri).scheme:
            raise _refused(f"{where} needs an absolute URI as its $id, or one in a mapping, and has {uri!r}")
        uri = uri.removesuffix("#")
        if uri in documents:
            raise _refused(f"{where} has the URI of another document, {uri}")
        documents[uri] = text
    found = tuple(documents.items())
    _check(found)
    return found


@lru_cache(maxsize=16)
def registry(documents: Documents) -> Registry:
    """The library's registry of the documents.

    Raises:
        ValueError: one refers to a document that is not registered.
    """
    import jsonschema_rs

    def refuse(uri: str) -> NoReturn:
        raise LookupError(f"{uri} is not registered")

    return jsonschema_rs.Registry([(uri, patterns.read_schema(text)) for uri, text in documents], retriever=refuse)


def _check(documents: Documents) -> None:
    """Find a document that cannot be used now, and not when the first row refers to it."""
    import jsonschema_rs

    try:
        known = registry(documents)
    except ValueError as error:
        raise _refused(f"a document cannot be used: {str(error)[:300]}") from error
    for uri, text in documents:
        for name, keyword in misspelled(parse(text, SHALLOW).value):
            raise _refused(f"the schema of {uri} has an unknown keyword {name!r}: did you mean {keyword!r}?")
        try:
            jsonschema_rs.validator_for(
                {"$ref": uri}, registry=known, offline=True, pattern_options=patterns.backtracking()
            )
        except ValueError as error:
            raise _refused(f"the schema of {uri} cannot be used: {str(error)[:300]}") from error


def _by_uri(schemas: Mapping[str, dict | bool | str]) -> Iterator[tuple[str, str, str]]:
    for uri, schema in schemas.items():
        if isinstance(schema, str):
            text, where = _read(Path(schema).expanduser()), schema
            _parsed(text, where)
        else:
            where = f"the schema of {uri}"
            try:
                text = json.dumps(schema, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise _refused(f"{where} is not JSON: {error}") from error
        yield uri, text, where


def _in_folder(folder: str) -> Iterator[tuple[str, str, str]]:
    files = sorted(Path(folder).expanduser().rglob("*.json"))
    if not files:
        raise _refused(f"there is no .json file in the folder {folder}")
    for file in files:
        text = _read(file)
        schema = _parsed(text, str(file))
        uri = schema.get("$id") if isinstance(schema, dict) else None
        yield uri if isinstance(uri, str) else "", text, str(file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"a file cannot be read: {error}") from error


def _parsed(text: str, where: str) -> Json:
    try:
        return parse(text, SHALLOW).value
    except NotJSON as refusal:
        raise _refused(f"{where} is not valid JSON: {refusal}") from refusal


def _refused(what: str) -> ConfigError:
    return ConfigError(f"JSONSchemaVerifier: the option 'schemas': {what}")
