"""Verdicts per second of JSONSchemaVerifier: ``python benchmarks/json_verifier.py``.

One invoice of about 600 characters per row, of which a third are wrong and a third violate the schema, on one core; and
the time of a few malicious completions.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from typing import Any

from grpo_lightning.verifiers import JSONSchemaVerifier, Sample

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4,}$"},
        "date": {"type": "string", "format": "date"},
        "customer": {"$ref": "#/$defs/customer"},
        "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
        "paid": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["number", "date", "customer", "items", "paid", "note"],
    "additionalProperties": False,
    "$defs": {
        "customer": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "city": {"type": "string"}},
            "required": ["name", "city"],
        },
        "item": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "count": {"type": "integer", "minimum": 1},
                "price": {"type": "number", "exclusiveMinimum": 0},
            },
            "required": ["name", "count", "price"],
        },
    },
}
CONTEXTS = (
    "{}",
    "Here is the invoice:\n```json\n{}\n```",
    "<think>Two items.</think>\nThe invoice is {}, as [1] says.",
)
TREE = {"anyOf": [{"type": "number"}, *({"type": "array", "items": {"$ref": "#"}, "maxItems": n} for n in range(1, 9))]}
MALICIOUS: dict[str, tuple[str, Any]] = {
    "100,000 nested brackets": ("[" * 100_000 + "]" * 100_000, TREE),
    "10 MB": ("[" + "1," * 5_000_000 + "1]", TREE),
    "alternatives on 99 levels": ("[" * 99 + '"x"' + "]" * 99, TREE),
    "small objects": ("[" + ",".join(['{"a":{"b":[]}}'] * 16_000) + "]", {"uniqueItems": True}),
    "distinct objects": ("[" + ",".join(f'{{"a":{i}}}' for i in range(18_000)) + "]", {"uniqueItems": True}),
    "a backtracking pattern": (json.dumps("a" * 240_000 + "!"), {"pattern": "^(a+)+$"}),
    "open brackets": ("[1" * 120_000, TREE),
}


def invoice(number: int) -> dict[str, Any]:
    """Make an invoice that fits the schema."""
    items = [{"name": f"Part {n}", "count": n + 1, "price": 9.99 + number + n} for n in range(5)]
    customer = {"name": f"Customer {number}", "city": "Bonn"}
    date = f"2024-05-{number % 28 + 1:02}"
    return {
        **{"number": f"AB-{1000 + number}", "date": date, "customer": customer},
        **{"items": items, "paid": number % 2 == 0, "note": None},
    }


def samples(count: int) -> list[Sample]:
    """Make samples of which a third are correct, a third are wrong, and a third violate the schema."""
    samples = []
    for i in range(count):
        gold = invoice(i)
        answer: dict[str, Any] = [gold, {**gold, "paid": not gold["paid"]}, {**gold, "note": 5}][i % 3]
        completion = CONTEXTS[i // 3 % 3].format(json.dumps(answer, indent=i % 2 or None))
        samples.append(Sample("", completion, gold, {"schema": SCHEMA}))
    return samples


def seconds(verifier: JSONSchemaVerifier, batch: list[Sample], repeats: int = 3) -> float:
    """Return the best time of a few runs, since the machine may be shared."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        verdicts = verifier.verify_batch(batch)
        best = min(best, time.perf_counter() - start)
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        if errors:
            raise RuntimeError(errors[0])
    return best


def main() -> None:
    verifier = JSONSchemaVerifier()
    batch = samples(6_000)
    print(f"command: {' '.join([os.path.basename(sys.executable), *sys.argv])}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    length = sum(len(sample.completion) for sample in batch) // len(batch)
    print(f"{len(batch) / seconds(verifier, batch):,.0f} verdicts/s on one core, completions of {length} characters")
    for name, (completion, schema) in MALICIOUS.items():
        print(f"{1000 * seconds(verifier, [Sample('', completion, None, {'schema': schema})]):8.1f} ms  {name}")


if __name__ == "__main__":
    main()
