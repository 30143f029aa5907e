"""Runs the coroutines of a batch at the same time, from code that is not asynchronous itself."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any


def settled(values: Sequence[Any], timeout_s: float | None) -> list[Any]:
    """The values, with those awaited that can be; exceptions stand in the places of those that raise.

    Args:
        values: plain ones and awaitable ones.
        timeout_s: time limit of each, after which there is a ``TimeoutError`` in its place; ``None`` for no limit.
    """
    return asyncio.run_coroutine_threadsafe(_all_settled(values, timeout_s), _event_loop(os.getpid())).result()


@lru_cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own: the caller's may be running one already, as in a notebook.

    Args:
        process: the caller's id. A forked process has no thread of its parent's, and needs its own.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"event loop of {process}", daemon=True).start()
    return loop


async def _all_settled(values: Sequence[Any], timeout_s: float | None) -> list[Any]:
    return await asyncio.gather(*(_settled(value, timeout_s) for value in values))


async def _settled(value: Any, timeout_s: float | None) -> Any:
    if not inspect.isawaitable(value):
        return value
    task = asyncio.ensure_future(_caught(value))
    # Unlike wait_for, this does not wait for a task that ignores its cancellation.
    await asyncio.wait([task], timeout=timeout_s)
    if task.done():
        return task.result()
    task.cancel()
    return TimeoutError(f"no reward within {timeout_s} s")


async def _caught(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except Exception as error:
        return error
    except BaseException as error:
        # SystemExit would end the thread of the loop, and then nobody wakes the caller.
        return RuntimeError(type(error).__name__)
