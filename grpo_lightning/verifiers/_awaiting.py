"""Run the coroutines of a batch concurrently from synchronous code."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any


def settle(values: Sequence[Any], timeout_s: float | None) -> list[Any]:
    """Await the awaitable values; a value that raises is replaced with its exception.

    Args:
        values: plain and awaitable values.
        timeout_s: time limit per value in seconds, after which it is replaced with a ``TimeoutError``; ``None`` for no
            limit.
    """
    return asyncio.run_coroutine_threadsafe(_settle_all(values, timeout_s), _event_loop(os.getpid())).result()


@lru_cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Start an event loop in a separate thread: the caller's thread may already run one, as in a notebook.

    Args:
        process: process id of the caller. A forked process does not inherit its parent's threads and needs its own.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"event loop of {process}", daemon=True).start()
    return loop


async def _settle_all(values: Sequence[Any], timeout_s: float | None) -> list[Any]:
    return await asyncio.gather(*(_settle(value, timeout_s) for value in values))


async def _settle(value: Any, timeout_s: float | None) -> Any:
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
        # SystemExit would end the loop's thread, and the caller would wait forever.
        return RuntimeError(type(error).__name__)
