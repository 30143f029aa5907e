"""Puts the columns that verifiers read into the metadata of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.base import Verifier


def with_columns(prompts: Sequence[Prompt], verifiers: Sequence[Verifier]) -> list[Prompt]:
    """Return the prompts with the columns that the verifiers read in their metadata, which keeps what it has.

    Raises:
        ConfigError: a verifier needs a column that no row has; the message names both.
    """
    has_answer = any(prompt.answer is not None for prompt in prompts)
    available = list(dict.fromkeys(name for prompt in prompts for name in (*prompt.columns, *prompt.metadata)))
    wanted = dict.fromkeys(name for verifier in verifiers for name in verifier.columns(available, has_answer))
    if not wanted:
        return list(prompts)
    return [
        replace(
            prompt,
            metadata={name: prompt.columns[name] for name in wanted if name in prompt.columns} | dict(prompt.metadata),
        )
        for prompt in prompts
    ]
