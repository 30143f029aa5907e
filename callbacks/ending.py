"""Ending an evaluation at a signal, with the results so far."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.errors import RunError
from grpo_lightning.rollout import EvaluationEnd, RunCallback


class EndOnSignal(RunCallback):
    """Lets SIGTERM and Ctrl-C end ``test``, ``validate`` and ``predict`` after the current batch, results kept.

    A second Ctrl-C stops at once. In ``fit`` it does nothing: Lightning saves a checkpoint there.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._results = "completions are missing"
        self._handlers: dict[int, Any] = {}

    def raise_if_ended(self) -> None:
        """Make an evaluation that was ended early differ from a whole one, for whoever started it.

        Raises:
            RunError: a signal ended the last evaluation.
        """
        if self._signal is not None:
            raise RunError(f"{self._signal} ended the evaluation early: {self._results}")

    # Here, not in `setup`: Lightning puts its own handlers in place after it, and they give the results up.
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" or threading.current_thread() is not threading.main_thread():
            return
        self._signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, partial(self._end, trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_test_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_test_start(trainer, pl_module)

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        if trainer.state.fn != "fit":
            total = len(self.data_module.prompts("test" if end.purpose == "test" else "val"))
            self._results = f"the results are those of {end.prompts} of {total} prompts"

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _end(self, trainer: pl.Trainer, number: int, frame: Any) -> None:
        self._signal = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        self.data_module.end_evaluation()
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, self._handlers.pop(number))
            again = "; press it again to stop at once"
        elif trainer.strategy.launcher is not None:
            # The terminal sends Ctrl-C to all processes; SIGTERM comes to this one.
            trainer.strategy.launcher.kill(number)
        if trainer.is_global_zero:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{self._signal}: ending after this batch, with the results so far{again}\n".encode())

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
