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
from grpo_lightning.rollout import EvaluationEnd, RolloutDataModule, RunCallback
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
        every_n_train_steps: write ``last.ckpt`` every this many optimizer steps too; without ``monitor`` also a
            numbered one, which ``save_top_k`` -1 keeps.

    Raises:
        ConfigError: nothing ranks what ``save_top_k`` keeps, the validation does not measure ``monitor``, or there is
            another ``RunCheckpoint``.
    """

    def __init__(
        self,
        monitor: str | None = ACCURACY,
        mode: Literal["max", "min"] = "max",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
    ) -> None:
        if monitor is None and save_top_k not in (-1, 0, 1):
            raise ConfigError(
                f"checkpoint.save_top_k: without a monitor nothing ranks {save_top_k} checkpoints: set "
                "checkpoint.monitor, or save_top_k to 1 for the newest, -1 for all, or 0 for none beside last.ckpt"
            )
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
        self._configured = monitor
        self._run_folder: str | None = None  # where it saves unless a subclass has set a dirpath
        self.reset()

    def reset(self) -> None:
        self.forget_saved()
        self.monitor = self._configured
        self._is_judged = True  # whether the last validation has any verdict
        self._began_at = 0  # optimizer steps at which this fit began
        self._whole_at = 0  # optimizer steps after which a training step was over, and its curves written

    @property
    def state_key(self) -> str:
        return self._state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.monitor == ACCURACY and state_dict.get("monitor") == REWARD:
            self.monitor = REWARD

    def on_data_ready(self, trainer: pl.Trainer, data: RolloutDataModule, stage: str) -> None:
        """Check what ranks the checkpoints, before the model is loaded."""
        super().on_data_ready(trainer, data, stage)
        at_k = [f"val/pass@{k}" for k in data.pass_at_k]
        if stage == "fit" and (self.monitor or "").startswith("val/pass@") and self.monitor not in at_k:
            raise ConfigError(
                f"checkpoint.monitor: {self.monitor} is measured only with its k in data.pass_at_k, which is "
                f"{data.pass_at_k}: add it there, or monitor another curve"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if any(isinstance(other, RunCheckpoint) and other is not self for other in trainer.checkpoint_callbacks):
            raise ConfigError(
                "trainer.callbacks: a second RunCheckpoint would remove the files of the first: to keep the best by "
                "another curve too, list lightning.pytorch.callbacks.ModelCheckpoint with a dirpath"
            )
        if self.dirpath in (None, self._run_folder):
            self.dirpath = self._run_folder = f"{trainer.default_root_dir}/checkpoints"
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles(pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began_at = self._whole_at = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._whole_at = trainer.global_step

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        """Rank by the reward once there is no accuracy to rank by; accuracies before it are not comparable with it."""
        self._is_judged = end.reward is not None
        if trainer.state.fn == "fit" and self.monitor == ACCURACY and end.ranked_by(ACCURACY) == REWARD:
            self.monitor = REWARD
            self.forget_best(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: Lightning has not written the step's curves yet, and a run resumed from here would lack them."""

    def on_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save where ``every_n_train_steps`` have been made: a batch may pass over a multiple of it.

        Only a validation ranks checkpoints by a curve.
        """
        self._whole_at = trainer.global_step
        every = self.save_interval
        passed = every >= 1 and trainer.global_step // every > max(self.last_saved_step, self._began_at) // every
        if passed and self.may_save(trainer):
            if self.monitor is None:
                self.save_best(trainer)
            self.save_as_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights that were just measured, if they are among the best, and as the last; none of step 0.

        Lightning's own hook ranks only without ``every_n_train_steps``, and writes the last only where this is a best.
        """
        if not self.may_save(trainer):
            return
        if self._is_judged and self.monitor not in (None, *trainer.callback_metrics):
            validated = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ConfigError(
                f"checkpoint.monitor: nothing is logged as {self.monitor}: use one of {', '.join(validated)}"
            )
        if not self._ranks_at_epoch_end(trainer):
            self._rank(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise where a validation ends each epoch, or where there is none: the epoch is over only now."""
        if self.may_save(trainer) and self._ranks_at_epoch_end(trainer):
            self._rank(trainer)

    def _ranks_at_epoch_end(self, trainer: pl.Trainer) -> bool:
        return self.save_interval < 1 and self.saves_at_epoch_end(trainer)

    def _rank(self, trainer: pl.Trainer) -> None:
        if self._is_judged:
            self.save_best(trainer)
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
