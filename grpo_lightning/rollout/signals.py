"""SIGTERM and Ctrl-C in a run of several processes: all of them end between the same two steps."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.lightning_private import end_on_requeue_signal, give_back_signal_handlers, set_sigterm_handler
from grpo_lightning.rollout.events import RunCallback


class EndTogether(RunCallback):
    """Lets SIGTERM and Ctrl-C end ``fit`` after the current step and its validation, in all of its processes.

    A signal meets each process at another place, and one that stops there leaves the others waiting. A second Ctrl-C
    stops at once. A single process is left to Lightning. SLURM's signal before the end of a job is a SIGTERM, too.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._interrupt: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.world_size > 1:
            set_sigterm_handler(trainer, partial(self._note, trainer))
        end_on_requeue_signal(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            self._interrupt = signal.signal(signal.SIGINT, partial(self._note, trainer))

    def on_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End where any process was sent a signal.

        Raises:
            SIGTERMException: a process was sent a signal. All processes raise it, as Lightning does in a single one.
        """
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._is_asked, all=False):
            raise SIGTERMException

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()
        give_back_signal_handlers(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        give_back_signal_handlers(trainer)

    def _note(self, trainer: pl.Trainer, number: int, frame: Any) -> None:
        self._is_asked = True
        name, again = signal.Signals(number).name, ""
        if number == signal.SIGINT:
            name, again = "Ctrl-C", "; press it again to stop at once, without a checkpoint"
            self._restore()
        if trainer.is_global_zero:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{name}: ending after this step{again}\n".encode())

    def _restore(self) -> None:
        if self._interrupt is not None:
            signal.signal(signal.SIGINT, self._interrupt)
            self._interrupt = None
