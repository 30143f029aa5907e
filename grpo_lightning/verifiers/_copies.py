"""Copies of what users' functions may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grpo_lightning.types import Sample


def own(value: Any) -> Any:
    """Copy lists, dicts and sets, which the function may change: a row is shared by its group and all verifiers."""
    if isinstance(value, dict):
        return {key: own(one) for key, one in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(own, value))
    return value


def own_sample(sample: Sample) -> Sample:
    return replace(
        sample,
        prompt=own(sample.prompt),
        answer=own(sample.answer),
        metadata={name: own(value) for name, value in sample.metadata.items()},
    )
