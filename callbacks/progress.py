"""A progress bar in optimizer steps, with the main curves of an RL run."""

from __future__ import annotations

import logging
import math
import os
import sys
from contextlib import ExitStack
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from grpo_lightning.algorithms import OnlineModule
from grpo_lightning.curves import CURVES

LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
"""What is written into a log: no bar; the remaining time follows ``<``."""


class Lines:
    """A log file for tqdm: every update is a new line, where a terminal would overwrite the last one."""

    encoding = "utf-8"

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._file.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._file.flush()


class StepProgressBar(ProgressBar):
    """One bar over all optimizer steps of ``fit``, and one over the batches of validation, test and predict.

    Beside it: reward, share of correct completions, KL, accuracy, tokens sampled per second, and the time left. In a
    notebook it is a widget. Where the output is neither that nor a terminal (a log file), a line is written every
    ``log_interval_s`` seconds.

    Args:
        log_interval_s: seconds between lines in a log.
    """

    def __init__(self, log_interval_s: float = 10.0) -> None:
        super().__init__()
        self.log_interval_s = log_interval_s
        self._enabled = True
        self._bar: tqdm | None = None
        self._eval_bar: tqdm | None = None
        self._redirected = ExitStack()

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)))

    # -- training ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar = self._new("train", _optimizer_steps(trainer, pl_module), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.set_postfix(self._shown(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_postfix(self._shown(trainer))
            self._bar.close()
            self._bar = None
        self._redirected.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for bar in (self._bar, self._eval_bar):
            if bar is not None:
                bar.close()
        self._redirected.close()

    # -- evaluation -------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Inside of fit, validation is a pause of the one bar there is.
        if self._bar is None:
            self._start_evaluation("validate", trainer.num_val_batches)

    def on_validation_batch_end(self, *args: Any) -> None:
        self._advance_evaluation()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_evaluation()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_evaluation("test", trainer.num_test_batches)

    def on_test_batch_end(self, *args: Any) -> None:
        self._advance_evaluation()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_evaluation()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_evaluation("predict", trainer.num_predict_batches)

    def on_predict_batch_end(self, *args: Any) -> None:
        self._advance_evaluation()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_evaluation()

    # -- bars -------------------------------------------------------------------------------------------------------

    def _new(self, name: str, total: int | None, done: int = 0) -> tqdm:
        terminal, notebook = _has_terminal(), any("notebook" in base.__module__ for base in tqdm.__mro__)
        options: dict[str, Any] = {"dynamic_ncols": True}
        if not terminal and not notebook:
            options = {
                "file": Lines(sys.stderr), "bar_format": LINE,
                "mininterval": self.log_interval_s, "maxinterval": self.log_interval_s,
            }  # fmt: skip
        elif terminal and self._enabled and name == "train":
            # What is logged goes above the bar, not into it.
            loggers = [logging.getLogger(logger) for logger in ("grpo_lightning", "lightning.pytorch")]
            self._redirected.enter_context(logging_redirect_tqdm([logger for logger in loggers if logger.handlers]))
        unit = "step" if name == "train" else "batch"
        return tqdm(desc=name, total=total, initial=done, unit=unit, disable=not self._enabled, **options)

    def _start_evaluation(self, name: str, batches: Any) -> None:
        self._eval_bar = self._new(name, int(sum(batches)))

    def _advance_evaluation(self) -> None:
        if self._eval_bar is not None:
            self._eval_bar.update()

    def _end_evaluation(self) -> None:
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None

    def _shown(self, trainer: pl.Trainer) -> dict[str, str]:
        """Labels and values of the curves declared for the bar; the loss only without a reward."""
        metrics = trainer.callback_metrics
        return {
            curve.bar: f"{float(metrics[name]):.{0 if curve.unit == 'tokens/s' else 3}f}"
            for name, curve in CURVES.items()
            if curve.bar and name in metrics and not (curve.bar == "loss" and "reward/mean" in metrics)
        }


def _optimizer_steps(trainer: pl.Trainer, module: pl.LightningModule) -> int | None:
    """How many there will be, at most; ``None`` for no end."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches = trainer.estimated_stepping_batches
    per_batch = module.updates_per_rollout * module.minibatches_per_update if isinstance(module, OnlineModule) else 1
    return int(batches) * per_batch if batches < math.inf else None


def _has_terminal() -> bool:
    """Whether stderr is a terminal with room for a bar: pseudo-terminals without a user may report no columns."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
