"""Everything of Lightning that this project uses and Lightning does not promise to keep.

Read in lightning 2.6.6. No other file touches a private name of Lightning (a test holds this), and
``tests/test_lightning_private.py`` says which of these a newer version has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Log at ``step`` from now on.

    ``_TrainingEpochLoop._batches_that_stepped`` is the step that loggers get. In some resumed runs it is one too high.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def set_optimizer_steps(trainer: pl.Trainer, steps: int) -> None:
    """Make ``trainer.global_step`` say that ``steps`` optimizer steps of manual optimization have been made.

    It reads ``fit_loop.epoch_loop.manual_optimization.optim_step_progress``.
    """
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = steps


def validate_now(trainer: Any) -> None:
    """Validate inside ``fit``, before its first step or after its last; nothing where ``fit`` does not validate.

    As ``_TrainingEpochLoop.on_advance_end`` does: ``Trainer.validate`` would end the fit, for it resets the loops.
    """
    if trainer.enable_validation and trainer.num_val_batches and sum(trainer.num_val_batches):
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


def set_sigterm_handler(trainer: pl.Trainer, handler: Callable[[int, Any], None]) -> None:
    """Call ``handler`` at SIGTERM, instead of what Lightning registers as its fit begins.

    ``_SignalConnector._sigterm_notifier_fn`` broadcasts over all processes from inside the handler, where it pairs with
    whatever collective another process is in, and both hang.
    """
    trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[assignment, method-assign]


def end_on_requeue_signal(trainer: pl.Trainer) -> None:
    """Handle the signal by which SLURM announces the end of a job (``SLURMEnvironment.requeue_signal``) as SIGTERM.

    ``_SignalConnector._slurm_sigusr_handler_fn`` saves from inside the handler, whatever the process is doing, and not
    to the run's last checkpoint.
    """
    connector = trainer._signal_connector
    connector._slurm_sigusr_handler_fn = connector._sigterm_notifier_fn  # type: ignore[method-assign]


def give_back_signal_handlers(trainer: pl.Trainer) -> None:
    """Undo both for what the trainer does next: Lightning registers its own methods again."""
    for name in ("_sigterm_notifier_fn", "_slurm_sigusr_handler_fn"):
        vars(trainer._signal_connector).pop(name, None)


def has_static_graph(strategy: DDPStrategy) -> bool:
    """Whether DDP is configured for one static graph: ``DDPStrategy._ddp_kwargs`` goes to torch's DDP."""
    return bool(strategy._ddp_kwargs.get("static_graph"))


class SavingCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` whose steps of saving a subclass may call.

    Its public hooks decide when to save and cannot be asked to save now: they skip the last checkpoint where the best
    has not changed, and steps that a training batch of several optimizer steps passes over.
    """

    @property
    def save_interval(self) -> int:
        """Optimizer steps between checkpoints; 0 saves after validations instead."""
        return self._every_n_train_steps

    @property
    def last_saved_step(self) -> int:
        return self._last_global_step_saved

    def may_save(self, trainer: pl.Trainer) -> bool:
        """Whether there is something to save: not in a dry run, outside ``fit``, or twice at one step."""
        return not self._should_skip_saving_checkpoint(trainer)

    def may_save_on_exception(self, trainer: pl.Trainer) -> bool:
        """Likewise, once ``fit`` is being torn down."""
        return self._should_save_on_exception(trainer)

    def saves_at_epoch_end(self, trainer: pl.Trainer) -> bool:
        """Whether checkpoints are made at the end of epochs, not after validations."""
        return self._should_save_on_train_epoch_end(trainer)

    def save_best(self, trainer: pl.Trainer) -> None:
        """Save if this is among the best; nothing before ``monitor`` has been logged."""
        candidates = self._monitor_candidates(trainer)
        if self.monitor is None or self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)

    def forget_best(self, trainer: pl.Trainer) -> None:
        """Rank anew: drop the best so far, with their files."""
        for path in self.best_k_models:
            if self._should_remove_checkpoint(trainer, path, ""):
                self._remove_checkpoint(trainer, path)
        self.forget_ranks()

    def forget_saved(self) -> None:
        """Be as new; the files stay."""
        self.forget_ranks()
        self.last_model_path = self._last_checkpoint_saved = ""
        self._last_global_step_saved = 0

    def forget_ranks(self) -> None:
        """Know of no best."""
        self.best_k_models = {}
        self.best_model_path = self.kth_best_model_path = ""
        self.best_model_score = self.current_score = None
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)

    def save_as_last(self, trainer: pl.Trainer) -> None:
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class FilteringCLI(LightningCLI):
    """A LightningCLI that may omit the callbacks that it adds itself.

    ``_instantiate_trainer`` is the only place where they are still apart from those that the config lists.
    """

    def added_callbacks(self, config: dict[str, Any], callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
        """Those of ``callbacks`` that the Trainer gets, beside the ones of ``config``, its options."""
        return list(callbacks)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        return super()._instantiate_trainer(config, self.added_callbacks(config, callbacks))
