"""Generates rows: ``python -m grpo_lightning.tasks.reasoning_gym.rows``, with a request on standard input.

A separate process, in which sets have the same order every time and the random numbers of the libraries are seeded:
some data sets depend on both, and rows must be the same in every run and after a resume.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import sys
from typing import Any

from grpo_lightning.verifiers.reasoning_gym.datasets import build_dataset

_ROWS_PER_SEED = 1_000_000
_TRIES = 50
"""First rows of which one must not fail."""


def generate(parts: list[dict[str, Any]], seed: int) -> list[dict[str, list[dict[str, Any]]]]:
    """Generate the rows of each data set, by split. No question is in two splits, or twice in one.

    Args:
        parts: for each data set, its ``source``, which identifies it, and its ``sizes``, the number of rows by split.
        seed: the random seed.

    Raises:
        ValueError: a data set cannot be built, or has too few distinct questions; the message begins with a key.
    """
    seen: set[str] = set()
    rows: list[dict[str, list[dict[str, Any]]]] = [{} for _ in parts]
    splits = list(parts[0]["sizes"])
    for number, split in enumerate(splits):
        for place, part in enumerate(parts):
            # Seeds of a split are those of its data sets, one after the other: all stay below numpy's limit.
            first_seed = (seed * len(splits) + number) * _ROWS_PER_SEED + place * (_ROWS_PER_SEED // len(parts))
            rows[place][split] = _generate(part["source"], split, part["sizes"][split], first_seed, seen)
    return rows


def _generate(source: str, split: str, size: int, first_seed: int, seen: set[str]) -> list[dict[str, Any]]:
    """Generate the rows of a data set in a split, with questions that have not been seen, which are then seen.

    Rows that the data set fails to generate are skipped: some have no solution.
    """
    # More than is needed, since questions repeat. A few data sets make as many rows at once as they are told.
    draws = 2 * size + 500
    dataset = build_dataset(source, first_seed, draws)
    name = json.loads(source)["name"]
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []
    for index in range(draws):
        if len(rows) == size:
            break
        _seed_libraries(first_seed + index)
        try:
            entry = dataset[index]
        except Exception as error:  # any: it is the data set's own code
            failures.append(error)
            if len(failures) == index + 1 == _TRIES:
                raise ValueError(
                    f"name: {name} generates no row with this difficulty and these options ({error!r}); change them"
                ) from error
            continue
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        rows.append(
            {
                "question": entry["question"],
                "answer": entry["answer"],
                "entry": base64.b64encode(pickle.dumps(entry)).decode(),
            }
        )
    if len(rows) < size:
        failed = f" ({len(failures)} of {draws} rows failed, the last with {failures[-1]!r})" if failures else ""
        raise ValueError(
            f"{split}_size: {name} has only about {len(rows)} distinct questions that no other split or data set has, "
            f"not {size}; lower it, or raise the difficulty{failed}"
        )
    return rows


def _seed_libraries(seed: int) -> None:
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def main() -> None:
    # Libraries that print must not break the reply.
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        json.dump({"rows": generate(request["parts"], request["seed"])}, reply)
    except ValueError as error:
        json.dump({"refused": str(error)}, reply)
    reply.close()


if __name__ == "__main__":
    main()
