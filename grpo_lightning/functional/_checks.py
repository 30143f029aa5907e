"""Argument checks shared by the equations. Each raises one clear sentence before any arithmetic."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise unless ``value`` is one of the strings of the ``Literal`` type ``choices``."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}.")


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise unless all tensors that are not ``None`` have the same shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"These tensors must have the same shape: {listing}.")


def check_mask(mask: Tensor) -> None:
    """Raise unless ``mask`` is boolean: an integer or float mask would silently act as weights."""
    if mask.dtype != torch.bool:
        raise ValueError(f"The mask must be boolean (True = counts), but has dtype {mask.dtype}.")
