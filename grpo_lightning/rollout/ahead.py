"""Rollouts one step ahead: an engine outside of this process samples the next step while this one is learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from threading import Thread
from typing import Any

import torch.distributed as dist

from grpo_lightning.phases import Phases
from grpo_lightning.rollout.collector import Collector
from grpo_lightning.rollout.engines.base import Engine
from grpo_lightning.rollout.engines.recorded import ChangedError, Recorder, Replay
from grpo_lightning.rollout.experience import Ahead, Experience
from grpo_lightning.rollout.learner import Learner
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.ranks import rank, world_size

log = logging.getLogger(__name__)


class LookAhead:
    """Collects the experience of one step on a thread, while the step before is learned.

    Weights never change under rows in flight: :meth:`settle` comes before every push. What has been sampled ahead goes
    into checkpoints, and is judged again in a resumed run: no row is lost, and none is learned twice.

    Args:
        learner: the module.
        engine: samples outside of this process; it has been started before :meth:`start` is called.
        rows_at_once: see :class:`~grpo_lightning.rollout.collector.Collector`.
    """

    def __init__(self, learner: Learner, engine: Engine, rows_at_once: int | None) -> None:
        self._learner = learner
        self._recorder = Recorder(engine)
        self._rows_at_once = rows_at_once
        self._pending: _Pending | None = None
        self._restored: dict[str, Any] | None = None

    def start(self, prompts: PromptBatch, weights: int) -> None:
        """Begin to collect a step.

        Args:
            prompts: those of the step.
            weights: optimizer steps of the weights that the engine holds.
        """
        self._recorder.calls.clear()
        self._pending = _Pending(prompts.recipe.step, weights, lambda: self._collector(self._recorder)(prompts))

    def take(self, prompts: PromptBatch, weights: int) -> Experience | None:
        """The experience of a step that was begun, in this run or before it was resumed; ``None`` if it was not.

        Args:
            prompts: those of the step.
            weights: optimizer steps of the present weights.

        Raises:
            RunError: it could not be collected.
        """
        step, restored, pending = prompts.recipe.step, self._restored, self._pending
        self._restored = self._pending = None
        if restored is not None and restored["step"] == step:
            return self._replayed(restored, prompts, weights)
        if pending is None:
            return None
        pending.wait()
        return replace(pending.result(), ahead=pending.ahead(weights)) if pending.step == step else None

    def settle(self, all_ranks: bool) -> None:
        """Wait until no row is in flight: the engine is needed for something else.

        Args:
            all_ranks: whether the rows of every rank are waited for, since weights are about to change. If so, every
                rank must call it.
        """
        if self._pending is not None:
            self._pending.wait()
            self._pending.interrupted = True
        if all_ranks and world_size() > 1:
            dist.barrier()

    def state(self, wait: bool) -> dict[str, Any]:
        """What a checkpoint holds: the completions sampled ahead, by rank, and by which weights.

        Args:
            wait: whether rows in flight are waited for; else they are sampled again after a resume. If so, every rank
                must call it.
        """
        mine = self._restored
        if self._pending is not None:
            if wait:
                self._pending.wait()
            mine = self._pending.state() if self._pending.succeeded else None
            mine = None if mine is None else mine | {"calls": self._recorder.state()}
        ranks = [mine]
        if world_size() > 1:
            ranks = [None] * world_size()
            if wait:
                dist.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def load(self, state: dict[str, Any]) -> None:
        """Load what a checkpoint holds, unless another number of processes wrote it."""
        ranks = state["ranks"]
        if len(ranks) == world_size() and all(mine is not None for mine in ranks):
            self._restored = ranks[rank()]

    def join(self) -> None:
        """Wait for the thread, after the engine has been stopped."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def _replayed(self, restored: dict[str, Any], prompts: PromptBatch, weights: int) -> Experience | None:
        try:
            experience = self._collector(Replay(restored["calls"]))(prompts)
        except ChangedError:
            log.info("data: the rollouts in the checkpoint are of other prompts or options, and are sampled again")
            return None
        return replace(experience, ahead=Ahead(weights - restored["weights"]))

    def _collector(self, engine: Recorder | Replay) -> Collector:
        # No model runs there, so no precision is needed. Its phases overlap those of the step that is learned, whose
        # listeners would take them for parts of it.
        return Collector(self._learner, engine, nullcontext, self._rows_at_once, Phases())


class _Pending:
    """An experience in the making.

    Args:
        step: the training step that it is for.
        weights: optimizer steps of the weights that it is sampled from.
        collect: makes it, on a thread.
    """

    def __init__(self, step: int, weights: int, collect: Callable[[], Experience]) -> None:
        self.step = step
        self.weights = weights
        self.interrupted = False
        """Whether the engine did something else between this and the step before."""
        self._collect = collect
        self._future: Future[Experience] = Future()
        self._waited = 0.0
        self._started = self._ended = time.monotonic()
        # A daemon thread: a process that is being terminated does not wait for rows in flight.
        Thread(target=self._run, name="rollouts-ahead", daemon=True).start()

    def _run(self) -> None:
        try:
            experience = self._collect()
        except BaseException as error:
            self._ended = time.monotonic()
            self._future.set_exception(error)
        else:
            self._ended = time.monotonic()
            self._future.set_result(experience)

    def wait(self) -> None:
        started = time.monotonic()
        self._future.exception()
        self._waited += time.monotonic() - started

    def result(self) -> Experience:
        return self._future.result()

    @property
    def succeeded(self) -> bool:
        return self._future.done() and self._future.exception() is None

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def ahead(self, weights: int) -> Ahead:
        """How it was made, once it has been waited for."""
        if self.interrupted:
            return Ahead(weights - self.weights)
        now = time.monotonic()
        seconds = now - self._started
        return Ahead(weights - self.weights, self._waited / seconds, (now - self._ended) / seconds)
