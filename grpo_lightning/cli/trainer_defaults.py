"""What a run's Trainer has where the config says nothing: log every step, TensorBoard in the run dir, a step bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger

TRAINER_DEFAULTS = {
    # RL steps are few and expensive: log each, count validation intervals in steps across passes over the data.
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 50,
    # RunSummary validates before the first step, completely; a sanity check before that would sample for nothing.
    "num_sanity_val_steps": 0,
}


def add_run_defaults(trainer: Any, run_dir: Path) -> None:
    """Complete the ``trainer`` part of a config: its loggers write into the run dir, and there is a progress bar."""
    if trainer.barebones:
        # Lightning refuses any log in this mode. Without a log, the callbacks of a run have nothing to read either.
        trainer.log_every_n_steps = None
        return
    if trainer.logger in (None, True):
        trainer.logger = _tensorboard(run_dir)
    _into_run_dir(trainer.logger, run_dir)
    callbacks = trainer.callbacks or []
    if trainer.enable_progress_bar is not False and not any("ProgressBar" in c.class_path for c in callbacks):
        bar = Namespace(class_path="grpo_lightning.callbacks.StepProgressBar", init_args=Namespace())
        trainer.callbacks = [*callbacks, bar]


def _into_run_dir(loggers: Any, run_dir: Path) -> None:
    """Put the files of a logger with ``save_dir: .`` (which is W&B's default) into the run dir."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = getattr(logger, "init_args", None)
        if options is not None and str(options.get("save_dir")) == ".":
            options.save_dir = str(run_dir)


def _tensorboard(run_dir: Path) -> Any:
    """The config of the logger that a run has if none is asked for."""
    return Namespace(
        class_path=f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__qualname__}",
        init_args=Namespace(save_dir=str(run_dir), name="", version="", default_hp_metric=False),
    )
