"""Ragged rows as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.types import TokenRows


def token_rows(prompts: Sequence[list[int]], completions: Sequence[list[int]], pad: int) -> TokenRows:
    """Lay prompts and completions side by side, right padded."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    return TokenRows(
        ids_NL=torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        prompt_lengths_N=torch.tensor([len(prompt) for prompt in prompts]),
        completion_lengths_N=torch.tensor([len(completion) for completion in completions]),
    )


def right_padded(rows: Sequence[list[float]]) -> Tensor:
    """Rows of numbers as one float32 tensor, with 0 after each row's end."""
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
