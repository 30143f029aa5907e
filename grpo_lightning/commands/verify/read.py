"""Reads the completions that ``grpo verify`` judges: a JSONL file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.stored import read_jsonl
from grpo_lightning.types import FinishReason, Sample


def read_samples(file: Path) -> list[Sample]:
    """Samples of a JSONL file: one ``completion`` per line, with ``answer``, ``metadata``, ``prompt`` where wanted.

    Raises:
        ConfigError: there is no such file, or a line of it is not such a record; the message names the line.
    """
    if not file.is_file():
        raise ConfigError(f"--samples: there is no file {file}")
    try:
        samples = [_sample(record, f"line {number} of {file}") for number, record in read_jsonl(file)]
    except ConfigError as error:
        raise ConfigError(f"--samples: {error}") from error
    if not samples:
        raise ConfigError(f"--samples: {file} has no rows")
    return samples


def _sample(record: Any, where: str) -> Sample:
    if not isinstance(record, dict):
        raise ConfigError(f"{where} must be a JSON object with a completion, not {record!r}")
    if "completion" not in record:
        raise ConfigError(f"{where} has no completion: add that key, with what the policy wrote")
    reason, allowed = record.get("finish_reason", "stop"), [str(reason) for reason in FinishReason]
    if reason not in allowed:
        raise ConfigError(
            f"{where} has finish_reason {json.dumps(reason)}: use one of {', '.join(allowed)}, or omit the key"
        )
    sample = sample_of(record)
    if not isinstance(sample.completion, str):
        raise ConfigError(f"{where} has a completion that is not text: {sample.completion!r}; put it in quotes")
    if not isinstance(sample.metadata, dict):
        raise ConfigError(f"{where} has metadata that is not a JSON object: {sample.metadata!r}; write it as one")
    return sample


def sample_of(record: dict[str, Any]) -> Sample:
    """The sample of one record: a line of a file, or a rollout that a run has stored."""
    return Sample(
        prompt=record.get("prompt", ""),
        completion=record["completion"],
        answer=record.get("answer"),
        metadata=record.get("metadata") or {},
        finish_reason=FinishReason(record.get("finish_reason", "stop")),
        token_ids=record.get("token_ids"),
        prompt_end=record.get("prompt_end") or "",
        prompt_is_text=record.get("prompt_is_text") or False,
    )
