"""Completions that are recorded as they are sampled, and given again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.sampling import SamplingParams, row_seed
from grpo_lightning.types import Completion, FinishReason

Call = dict[str, Any]
"""One call of ``generate``: what it was asked for, and the completions in the order in which they finished."""


class ChangedError(Exception):
    """What is asked for is not what was recorded."""


class Recorder:
    """Samples from an engine, and records what it gives.

    Args:
        engine: samples.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[Call] = []

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        """See :meth:`grpo_lightning.rollout.engines.base.Engine.generate`."""
        events: list[tuple[list[int], list[Completion]]] = []
        self.calls.append({"asked": _digest(requests, sampling), "events": events})

        def record(numbers: list[int], completions: list[Completion]) -> Sequence[Request]:
            events.append((list(numbers), list(completions)))
            return () if on_finish is None else on_finish(numbers, completions)

        return self.engine.generate(requests, sampling, record)

    def state(self) -> list[Call]:
        """The calls, in what a checkpoint may hold."""
        return [
            call | {"events": [[numbers, [_plain(done) for done in completions]] for numbers, completions in events]}
            for call in self.calls
            for events in [call["events"]]
        ]


class Replay:
    """Gives completions that were recorded, in the order in which they had finished.

    Args:
        calls: :meth:`Recorder.state`.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = iter(calls)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        """See :meth:`grpo_lightning.rollout.engines.base.Engine.generate`.

        Raises:
            ChangedError: the requests, or what follows them, are not those that were recorded.
        """
        call = next(self._calls, None)
        if call is None or call["asked"] != _digest(requests, sampling):
            raise ChangedError
        given: dict[int, Completion] = {}
        asked = len(requests)
        for numbers, rows in call["events"]:
            if max(numbers) >= asked:
                raise ChangedError
            completions = [Completion(**row | {"finish_reason": FinishReason(row["finish_reason"])}) for row in rows]
            given.update(zip(numbers, completions, strict=True))
            if on_finish is not None:
                asked += len(on_finish(list(numbers), completions))
        if len(given) < asked:
            raise ChangedError
        return [given[number] for number in range(len(given))]


def _digest(requests: Sequence[Request], sampling: SamplingParams) -> int:
    return row_seed(repr([tuple(request) for request in requests]), repr(sampling))


def _plain(completion: Completion) -> dict[str, Any]:
    return vars(completion) | {"finish_reason": completion.finish_reason.value}
