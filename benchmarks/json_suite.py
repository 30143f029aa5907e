"""Run JSON Schema's public test suite with JSONSchemaVerifier: ``python benchmarks/json_suite.py FOLDER``.

FOLDER is a copy of https://github.com/json-schema-org/JSON-Schema-Test-Suite, or the folder ``json`` of the source
package of ``jsonschema`` (``pip download --no-deps --no-binary jsonschema jsonschema``). The documents that the suite
expects at ``http://localhost:1234/`` are registered from its folder ``remotes``; nothing is fetched. The schemas are
compiled as for a row, but without the check that they constrain anything: many in the suite deliberately do not.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_lightning.verifiers.json.documents import read_documents
from grpo_lightning.verifiers.json.rules import compile_schema

HOST = "http://localhost:1234/"
DRAFTS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
}


def in_draft(schema: Any, draft: str) -> Any:
    """Add the draft to a schema that does not declare one; the default would be 2020-12."""
    return {"$schema": DRAFTS[draft], **schema} if isinstance(schema, dict) else schema


def remotes(folder: Path, draft: str) -> dict[str, Any]:
    """Return the documents of ``remotes`` by URI, except those of other drafts."""
    documents = {}
    for file in sorted((folder / "remotes").rglob("*.json")):
        name = file.relative_to(folder / "remotes").as_posix()
        top_folder, _, below = name.partition("/")
        document = json.loads(file.read_text(encoding="utf-8"))
        if top_folder == draft:
            documents[HOST + name] = in_draft(document, draft)
        elif not below or not top_folder.startswith(("draft", "v")):
            documents[HOST + name] = document
    return documents


def cases(folder: Path, draft: str) -> Iterator[tuple[str, Any, Any, bool]]:
    """Yield each test's description, its schema, its document, and whether the document is valid."""
    for file in sorted((folder / "tests" / draft).glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            for test in group["tests"]:
                description = f"{file.name}: {group['description']}: {test['description']}"
                yield description, group["schema"], test["data"], test["valid"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draft", choices=DRAFTS, default="draft2020-12")
    arguments = parser.parse_args()

    documents = read_documents(remotes(arguments.folder, arguments.draft))
    scores: Counter[str] = Counter()
    for description, schema, document, valid in cases(arguments.folder, arguments.draft):
        text = json.dumps(in_draft(schema, arguments.draft))
        try:
            fits = compile_schema(text, False, documents).fits(document)
            score, result = "right" if fits == valid else "wrong", "valid" if fits else "invalid"
        except ValueError as error:
            score, result = "error", str(error)
        scores[score] += 1
        if score != "right":
            print(f"{score}: {description}: {result}")
    print(f"{arguments.draft}: {scores['right']} of {scores.total()} right, {scores['wrong']} wrong, "
          f"{scores['error']} errors")  # fmt: skip


if __name__ == "__main__":
    main()
