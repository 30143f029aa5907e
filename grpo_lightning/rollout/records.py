"""A rollout as one plain record, for JSONL files."""

from __future__ import annotations

import math
from typing import Any

from grpo_lightning.types import Rollout


def record(rollout: Rollout) -> dict[str, Any]:
    """Everything a person wants to know of a rollout, in JSON's own types."""
    verdict, completion = rollout.verdict, rollout.completion
    return {
        "prompt": rollout.prompt.messages,
        "completion": completion.text,
        "answer": _plain(rollout.prompt.answer),
        "metadata": _plain(dict(rollout.prompt.metadata)),
        "correct": verdict.correct,
        "format_valid": verdict.format_valid,
        "reward": _or_none(rollout.reward),
        "rewards_by_verifier": {name: _or_none(reward) for name, reward in rollout.rewards_by_verifier.items()},
        "feedback": verdict.feedback,
        "error": verdict.error,
        "finish_reason": str(completion.finish_reason),
        "tokens": len(completion.token_ids),
    }


def _or_none(reward: float) -> float | None:
    """NaN is no JSON."""
    return None if math.isnan(reward) else reward


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
