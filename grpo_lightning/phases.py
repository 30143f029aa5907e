"""The phases of a step (rollout, verify, reference, update): how long each takes, and who wants to know of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass
class Phase:
    """One pass through a phase; ``seconds`` is 0 until it has ended."""

    name: str
    seconds: float = 0.0


class PhaseListener(Protocol):
    """What is told of phases. One that raises has no end: the listener still knows where the run broke."""

    def phase_started(self, name: str) -> None: ...

    def phase_ended(self, name: str) -> None: ...


class Phases:
    """Times phases, on CUDA the work itself and not only its launch, and tells listeners of them."""

    def __init__(self) -> None:
        self.listeners: list[PhaseListener] = []

    @contextmanager
    def __call__(self, name: str, device: torch.device) -> Iterator[Phase]:
        phase = Phase(name)
        for listener in self.listeners:
            listener.phase_started(name)
        started = _now(device)
        yield phase
        phase.seconds = _now(device) - started
        for listener in self.listeners:
            listener.phase_ended(name)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
