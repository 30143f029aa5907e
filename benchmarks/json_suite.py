"""What JSONSchemaVerifier makes of JSON Schema's public test suite: ``python benchmarks/json_suite.py FOLDER``.

FOLDER is a copy of https://github.com/json-schema-org/JSON-Schema-Test-Suite, or the folder ``json`` of the source
package of ``jsonschema`` (``pip download --no-deps --no-binary jsonschema jsonschema``). The documents that the suite
has under ``http://localhost:1234/`` are registered from its folder ``remotes``; nothing is fetched. The schemas are
compiled as for a row, without the check that they constrain anything: many of the suite do not, on purpose.
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
    """The schema with its draft. Without a word it would be in 2020-12."""
    return {"$schema": DRAFTS[draft], **schema} if isinstance(schema, dict) else schema


def remotes(folder: Path, draft: str) -> dict[str, Any]:
    """The documents of ``remotes`` by URI, but for those of other drafts."""
    found = {}
    for file in sorted((folder / "remotes").rglob("*.json")):
        name = file.relative_to(folder / "remotes").as_posix()
        of_draft, _, below = name.partition("/")
        document = json.loads(file.read_text(encoding="utf-8"))
        if of_draft == draft:
            found[HOST + name] = in_draft(document, draft)
        elif not below or not of_draft.startswith(("draft", "v")):
            found[HOST + name] = document
    return found


def cases(folder: Path, draft: str) -> Iterator[tuple[str, Any, Any, bool]]:
    """What each test is about, its schema, its document, and whether that is valid."""
    for file in sorted((folder / "tests" / draft).glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            for test in group["tests"]:
                about = f"{file.name}: {group['description']}: {test['description']}"
                yield about, group["schema"], test["data"], test["valid"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draft", choices=DRAFTS, default="draft2020-12")
    arguments = parser.parse_args()

    documents = read_documents(remotes(arguments.folder, arguments.draft))
    scores: Counter[str] = Counter()
    for about, schema, document, valid in cases(arguments.folder, arguments.draft):
        text = json.dumps(in_draft(schema, arguments.draft))
        try:
            fits = compile_schema(text, False, documents).fits(document)
            score, found = "right" if fits == valid else "wrong", "valid" if fits else "invalid"
        except ValueError as error:
            score, found = "error", str(error)
        scores[score] += 1
        if score != "right":
            print(f"{score}: {about}: {found}")
    print(f"{arguments.draft}: {scores['right']} of {scores.total()} right, {scores['wrong']} wrong, "
          f"{scores['error']} errors")  # fmt: skip


if __name__ == "__main__":
    main()
