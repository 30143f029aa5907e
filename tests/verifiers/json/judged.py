"""What the tests of JSON schemas share."""

from __future__ import annotations

from typing import Any

from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import JSONSchemaVerifier, judge

VERIFIER = JSONSchemaVerifier()


def verdict(completion: str, schema: Any, gold: Any = None, verifier: JSONSchemaVerifier = VERIFIER) -> Verdict:
    return judge(verifier, [Sample("", completion, gold, {"schema": schema})])[0]


def correct(completion: str, schema: Any, gold: Any = None) -> bool:
    judged = verdict(completion, schema, gold)
    assert judged.error is None, judged.error
    return judged.correct
