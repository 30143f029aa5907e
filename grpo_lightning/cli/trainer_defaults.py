"""What a run's Trainer has where the config says nothing: log every step, TensorBoard in the run dir, a step bar."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import loggers
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

TRAINER_DEFAULTS = {
    # RL steps are few and expensive: log each, count validation intervals in steps across passes over the data.
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 50,
    # RunSummary validates before the first step, completely; a sanity check before that would sample for nothing.
    "num_sanity_val_steps": 0,
}


def with_save_dir(logger: Any) -> Any:
    """A config's logger, or a list of them, with ``save_dir: .`` where its class requires one that is not given."""
    if isinstance(logger, list):
        return [with_save_dir(one) for one in logger]
    path = logger.get("class_path") if isinstance(logger, dict) else logger
    cls = _lightnings_logger(path)
    save_dir = None if cls is None else inspect.signature(cls).parameters.get("save_dir")
    if save_dir is None or save_dir.default is not inspect.Parameter.empty:
        return logger
    options = (logger.get("init_args") or {}) if isinstance(logger, dict) else {}
    return {"class_path": path, "init_args": {"save_dir": "."} | options}


def _lightnings_logger(path: Any) -> type | None:
    """Lightning's logger of a class path, or of a class name alone; ``None`` for anything else."""
    package, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    is_lightnings = package.partition(".")[0] in ("", "lightning", "pytorch_lightning")
    cls = getattr(loggers, name, None) if is_lightnings else None
    return cls if isinstance(cls, type) else None


def with_logger_options(arguments: Sequence[str]) -> list[str]:
    """The same command line, where ``--trainer.logger CSVLogger`` has the ``save_dir`` that the class requires."""
    done = list(arguments)
    for index, argument in enumerate(done):
        option, equals, value = argument.partition("=")
        at = index if equals else index + 1
        if option.removesuffix("+") != "--trainer.logger" or at >= len(done):
            continue
        try:
            given = yaml.safe_load(value if equals else done[at])
        except yaml.YAMLError:
            continue  # the parser says what is wrong
        if with_save_dir(given) != given:
            done[at] = (f"{option}=" if equals else "") + json.dumps(with_save_dir(given))
    return done


def add_run_defaults(trainer: Any, run_dir: Path) -> None:
    """Complete the ``trainer`` part of a config: its loggers write into the run dir, and there is a progress bar."""
    if trainer.barebones:
        # Lightning refuses any log in this mode. Without a log, the callbacks of a run have nothing to read either.
        trainer.log_every_n_steps = None
        return
    if trainer.logger in (None, True):
        tensorboard = f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__qualname__}"
        trainer.logger = Namespace(class_path=tensorboard, init_args=Namespace(save_dir="."))
    _into_run_dir(trainer.logger, run_dir)
    callbacks = trainer.callbacks or []
    if not isinstance(callbacks, list):
        trainer.callbacks = callbacks = [callbacks]  # Lightning takes one without a list, too
    if trainer.enable_progress_bar is not False and not any("ProgressBar" in c.class_path for c in callbacks):
        bar = Namespace(class_path="grpo_lightning.callbacks.StepProgressBar", init_args=Namespace())
        trainer.callbacks = [*callbacks, bar]


def _into_run_dir(configured: Any, run_dir: Path) -> None:
    """Put the files of a logger with ``save_dir: .`` (which is W&B's default) into the run dir.

    Those of TensorBoard and CSV lie in the run dir itself, where ``grpo compare`` and a resumed run look for them,
    unless the config gives them a ``name`` or a ``version``.
    """
    for logger in configured if isinstance(configured, list) else [configured]:
        options = getattr(logger, "init_args", None)
        if options is None or str(options.get("save_dir")) != ".":
            continue
        options.save_dir = str(run_dir)
        kind = _lightnings_logger(logger.class_path)
        is_unnamed = options.get("name", "lightning_logs") == "lightning_logs" and options.get("version") is None
        if kind in (TensorBoardLogger, CSVLogger) and is_unnamed:
            options.name = options.version = ""
            if kind is TensorBoardLogger:
                options.default_hp_metric = False
