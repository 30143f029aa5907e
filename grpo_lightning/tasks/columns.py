"""The columns that verifiers ask for, as metadata of the rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.base import Verifier

GOLD = "answer"
"""What the gold answer is called among the columns."""


def with_columns(prompts: Sequence[Prompt], verifiers: Sequence[Verifier]) -> list[Prompt]:
    """The prompts, with the columns that the verifiers ask for in their metadata. What is there already stays.

    Raises:
        ConfigError: a verifier needs a column that no row has; the message names both.
    """
    has_gold = any(prompt.answer is not None for prompt in prompts)
    names = (name for prompt in prompts for name in (*prompt.columns, *prompt.metadata))
    available = list(dict.fromkeys([*([GOLD] if has_gold else []), *names]))
    wanted = dict.fromkeys(name for verifier in verifiers for name in verifier.columns(available))
    if not wanted:
        return list(prompts)
    return [replace(prompt, metadata=_found(prompt, wanted) | dict(prompt.metadata)) for prompt in prompts]


def _found(prompt: Prompt, names: Collection[str]) -> dict[str, Any]:
    gold = {GOLD: prompt.answer} if GOLD in names else {}
    return gold | {name: prompt.columns[name] for name in names if name in prompt.columns}
