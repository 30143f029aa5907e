"""Sets of tokens as bits: the tokens that a constrained completion may have at a place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenSets(NamedTuple):
    """The tokens that each of ``M`` places may have.

    Args:
        bits_SW: distinct sets, ``int32``: token ``v`` is bit ``v % 32``, from the lowest, of word ``v // 32``.
        set_M: the place of each one's set.
    """

    bits_SW: Tensor
    set_M: Tensor


def excluded_tokens(bits_KW: Tensor, vocabulary: int) -> Tensor:
    """``bits_KW`` as in :class:`TokenSets` -> ``[K, V]``, True for the tokens that are not in the set."""
    bytes_KB = bits_KW.contiguous().view(torch.uint8)  # words are stored from their lowest byte
    bit = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits_KW.device)
    return (bytes_KB[:, :, None] & bit).eq(0).flatten(1)[:, :vocabulary]
