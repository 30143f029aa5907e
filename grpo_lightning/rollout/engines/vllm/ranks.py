"""What the processes of a run do together: the first one talks to the servers, and all learn what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def on_first_rank(make: Callable[[], T]) -> T:
    """What ``make`` returns, or raises, in the first process, for all of them. The others wait for it."""
    if not (dist.is_available() and dist.is_initialized()):
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
