"""The processes of a run: how many there are, which one this is, and what one does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _has_group() else 1


def on_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns, or raises, in the first process, for all of them. The others wait for it."""
    if not _has_group():
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [make(), None]
        except Exception as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
