"""The scoring process: runs the scorers of reasoning-gym on answers."""

from __future__ import annotations

import base64
import pickle
from functools import lru_cache
from typing import Any

from grpo_lightning.verifiers.reasoning_gym.closer_look import is_right
from grpo_lightning.verifiers.reasoning_gym.datasets import INSTALL, build_dataset


def load() -> None:
    """Import what every scorer needs, before any call."""
    try:
        import reasoning_gym  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error


@lru_cache(maxsize=256)
def prepare(source: str) -> Any:
    """Build the data set with the scorer, before the call that needs it: some read files, which takes longest."""
    return build_dataset(source, seed=0, size=1)


def score(source: str, answers: list[tuple[str, str]]) -> list[float | None]:
    """Return the scorer's value of each answer, or ``None`` if it raises: then the answer cannot be read.

    Args:
        source: what identifies the data set.
        answers: pairs of a row and an answer's text. The row is pickled, in base 64, and read in the sandbox only.

    Raises:
        ImportError: the scorer needs a package that is not installed.
    """
    dataset = prepare(source)
    return [_score(dataset, entry, answer) for entry, answer in answers]


def _score(dataset: Any, entry: str, answer: str) -> float | None:
    row = pickle.loads(base64.b64decode(entry))
    try:
        value = float(dataset.score_answer(answer, row))
        return value if value < 1.0 or is_right(answer, row) else 0.0
    except (ImportError, MemoryError):
        raise
    except Exception:
        return None
