"""Checkpoints: the best by validation accuracy, and always the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpo_lightning.algorithms import PolicyModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import SavingCheckpoint
from grpo_lightning.rollout import EvaluationEnd, RunCallback
from grpo_lightning.rollout.events import ACCURACY, REWARD
from grpo_lightning.stored import whole_file


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under another name in its folder and renames it: a file that is there is whole.

    Lightning's own writes into the folder for temporary files, and a move to another file system may break off midway.

    Args:
        module: whose checkpoints are written.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        is_whole = "pytorch-lightning_version" in checkpoint  # a launcher hands over weights alone in this way
        if is_whole and isinstance(self.module, PolicyModule) and "skipped_steps" not in checkpoint:
            raise ConfigError(
                f"{type(self.module).__name__}.on_save_checkpoint: call super().on_save_checkpoint(checkpoint), or "
                "nothing can be resumed from what it saves"
            )
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path)) as part:
            torch.save(checkpoint, part)


class RunCheckpoint(SavingCheckpoint, RunCallback):
    """Lightning's ``ModelCheckpoint`` in the run dir, with ``last.ckpt`` written at the very end too.

    Args:
        monitor: the curve that ranks checkpoints; ``None`` keeps the newest only. Once a validation has rewards that do
            not tell right from wrong, ``val/reward`` is used instead of ``val/accuracy``, and ranking starts anew.
        mode: whether the best has the ``max`` or the ``min`` of it.
        save_top_k: how many of the best are kept.
        every_n_train_steps: save every this many optimizer steps. Default: after every validation.
    """

    def __init__(
        self,
        monitor: str | None = ACCURACY,
        mode: Literal["max", "min"] = "max",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
    ) -> None:
        super().__init__(
            filename="best-step{step}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self._state_key = super().state_key  # it names the curve, which may be another one later
        self._whole_at = 0  # optimizer steps after which a training step was over, and its curves written

    @property
    def state_key(self) -> str:
        return self._state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.monitor == ACCURACY and state_dict.get("monitor") == REWARD:
            self.monitor = REWARD

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = self.dirpath or f"{trainer.default_root_dir}/checkpoints"
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles(pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._whole_at = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._whole_at = trainer.global_step

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        """Rank by the reward once there is no accuracy to rank by; accuracies before it are not comparable with it."""
        if trainer.state.fn == "fit" and self.monitor == ACCURACY and end.ranked_by(ACCURACY) == REWARD:
            self.monitor = REWARD
            self.forget_best(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: Lightning has not written the step's curves yet, and a run resumed from here would lack them."""

    def on_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save where ``every_n_train_steps`` have been made: a batch may make several, and pass over a multiple.

        The best needs a validation, the last does not.
        """
        self._whole_at = trainer.global_step
        every = self.save_interval
        passed = every >= 1 and trainer.global_step // every > self.last_saved_step // every
        if passed and self.may_save(trainer):
            self.save_best(trainer)
            self.save_as_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save as the last after every validation: Lightning's own hook does so only where the best was saved."""
        super().on_validation_end(trainer, pl_module)
        if self.save_interval < 1 and not self.saves_at_epoch_end(trainer) and self.may_save(trainer):
            self.save_as_last(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save ``last.ckpt`` on interruption, so that ``--ckpt_path last`` loses nothing.

        A step that was interrupted after its first update is not saved: its weights have learned from rollouts that a
        resumed run would learn from again. The checkpoint before it stays the last. So it does when a second Ctrl-C
        ends several processes, each at another place: saving takes all of them.
        """
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)) and trainer.global_step == 0:
            if trainer.is_global_zero and trainer.state.fn == "fit":
                print("\ninterrupted before the first step ended: there is nothing to continue from")
            return
        if not self.may_save_on_exception(trainer):
            return
        if isinstance(exception, SIGTERMException):
            self._whole_at = trainer.global_step  # Lightning raises it between steps, once their curves are written
        place = f"at step {trainer.global_step}"
        is_together = trainer.world_size == 1 or not isinstance(exception, KeyboardInterrupt)
        if trainer.global_step == self._whole_at and is_together:
            self.save_as_last(trainer)
        else:
            place = "within a step, which will be made again"
        if trainer.is_global_zero and Path(self.last_model_path).is_file():
            folder = Path(trainer.default_root_dir)
            # A warm start is part of the run in whose directory it lies, and continues with it.
            part = folder.name == "warm_start"
            command = f"--run_dir {folder.parent}" if part else f"--ckpt_path {self.last_model_path}"
            print(f"\ninterrupted {place}: continue with the same config and {command}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the run ended: Lightning's own hook does so only if nothing had been saved before."""
        if self.may_save(trainer):
            self.save_as_last(trainer)
