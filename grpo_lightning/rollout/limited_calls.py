"""Calls of user code side by side, each with a limit on its seconds."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Generic, TypeVar

Returned = TypeVar("Returned")

AT_ONCE = 16
"""Calls that run at the same time: environments wait for sandboxes and servers more than they compute."""


class _Running(Generic[Returned]):
    """Calls that are being made."""

    def __init__(self, calls: Sequence[Callable[[], Returned]]) -> None:
        self.calls = calls
        self.waiting = iter(range(len(calls)))
        self.begun: dict[int, float] = {}
        self.done: queue.SimpleQueue[tuple[int, Returned | Exception]] = queue.SimpleQueue()

    def work(self) -> None:
        # `next` of a range iterator is atomic.
        for number in self.waiting:
            self.begun[number] = time.monotonic()
            try:
                self.done.put((number, self.calls[number]()))
            except Exception as error:
                self.done.put((number, error))
            except BaseException as error:  # as SystemExit: it would end the thread without an answer
                self.done.put((number, RuntimeError(type(error).__name__)))


def call_all(calls: Sequence[Callable[[], Returned]], seconds: float) -> list[Returned | Exception]:
    """Make calls in threads, and return what each returned or raised; ``TimeoutError`` where it took too long.

    Args:
        calls: each is made once.
        seconds: limit on each call. One that hangs stays in its thread and does not delay the others.
    """
    running = _Running(calls)
    results: dict[int, Returned | Exception] = {}
    for _ in range(min(AT_ONCE, len(calls))):
        _begin(running)
    while len(results) < len(calls):
        try:
            number, result = running.done.get(timeout=min(1.0, seconds))
            results.setdefault(number, result)
        except queue.Empty:
            pass
        overdue = time.monotonic() - seconds
        for number, begun in list(running.begun.items()):
            if begun < overdue and number not in results:
                results[number] = TimeoutError(f"took more than {seconds:g} s")
                _begin(running)  # replaces the thread that hangs
    return [results[number] for number in range(len(calls))]


def _begin(running: _Running[Returned]) -> None:
    # A daemon thread: a program that ends does not wait for one that hangs.
    Thread(target=running.work, name="environment", daemon=True).start()
