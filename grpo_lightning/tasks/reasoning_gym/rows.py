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


def generate(source: str, seed: int, sizes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Generate the rows of each split in turn. No question is in two splits, or twice in one.

    Args:
        source: what identifies the data set.
        seed: the random seed.
        sizes: number of rows by split.

    Raises:
        ValueError: the data set cannot be built, or has too few distinct questions.
    """
    seen: set[str] = set()
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, (split, size) in enumerate(sizes.items()):
        first_seed = (seed * len(sizes) + number) * _ROWS_PER_SEED
        # More than is needed, since questions repeat. A few data sets make as many rows at once as they are told.
        draws = 2 * size + 500
        dataset = build_dataset(source, first_seed, draws)
        rows[split] = []
        for index in range(draws):
            if len(rows[split]) == size:
                break
            _seed_libraries(first_seed + index)
            entry = dataset[index]
            if entry["question"] in seen:
                continue
            seen.add(entry["question"])
            rows[split].append(
                {
                    "question": entry["question"],
                    "answer": entry["answer"],
                    "entry": base64.b64encode(pickle.dumps(entry)).decode(),
                }
            )
        if len(rows[split]) < size:
            name = json.loads(source)["name"]
            raise ValueError(
                f"{split}_size: {name} has only about {len(rows[split])} distinct questions that are not in another "
                f"split, not {size}; lower it, or raise the difficulty"
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
        rows = [generate(part["source"], request["seed"], part["sizes"]) for part in request["parts"]]
        json.dump({"rows": rows}, reply)
    except ValueError as error:
        json.dump({"refused": str(error)}, reply)
    reply.close()


if __name__ == "__main__":
    main()
