"""The phases of a step (rollout, verify, reference, update): how long each takes, and who listens to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from grpo_lightning.errors import OutOfMemory, RunError

FIXES = {
    "rollout": "lower data.rollout_rows_at_once (default: all rows of the step decode together), "
    "data.sampling.max_new_tokens, or in an evaluation data.val_batch_size",
    "verify": "the verifiers took it: look at what they hold",
    "reference": "lower model.max_tokens_per_microbatch; where a single row is longer than that already, lower "
    "data.sampling.max_new_tokens and data.max_prompt_tokens",
    "update": "lower model.max_tokens_per_microbatch, set model.policy.gradient_checkpointing to true, or train an "
    "adapter (model.policy.lora); where a single row is longer than that budget already, lower "
    "data.sampling.max_new_tokens and data.max_prompt_tokens",
}
"""Which setting to lower where a phase runs out of memory; phases without an entry compute as ``update`` does."""


@dataclass
class Phase:
    """One pass through a phase; ``seconds`` is 0 until it has ended."""

    name: str
    seconds: float = 0.0


class PhaseListener(Protocol):
    """Is called when phases start and end. A phase that raises does not end: the listener knows where the run broke."""

    def phase_started(self, name: str) -> None: ...

    def phase_ended(self, name: str) -> None: ...


class Phases:
    """Times phases, on CUDA the work itself and not only its launch, and calls listeners.

    Raises:
        OutOfMemory: the memory was not enough. It replaces torch's error, and names the phase and the setting to lower.
    """

    def __init__(self) -> None:
        self.listeners: list[PhaseListener] = []

    @contextmanager
    def __call__(self, name: str, device: torch.device) -> Iterator[Phase]:
        phase = Phase(name)
        for listener in self.listeners:
            listener.phase_started(name)
        started = _now(device)
        try:
            yield phase
        except RunError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise OutOfMemory(name, FIXES.get(name, FIXES["update"])) from error
        phase.seconds = _now(device) - started
        for listener in self.listeners:
            listener.phase_ended(name)


def _out_of_memory(error: Exception) -> bool:
    """Whether this is what torch or Python raise for it; on the CPU that is a plain ``RuntimeError``."""
    said = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in said)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
