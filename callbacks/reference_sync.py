"""Letting the reference of the KL follow the policy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import EvaluationEnd, RunCallback, StepEnd
from grpo_lightning.rollout.events import ACCURACY


class ReferenceSync(RunCallback):
    """Moves the reference to the policy every ``every_n_steps`` optimizer steps (TR-DPO, arXiv 2404.09656).

    ``reference <- alpha * policy + (1 - alpha) * reference``: the paper's hard update with ``alpha`` 1, its soft update
    below. The KL is 0 right after a hard update. A move falls between two training steps, so that the reference is
    fixed within each. It works for a reference that is a copy and for one that is an adapter; under LoRA the base
    stays as it is, and with ``alpha`` below 1 the reference is the adapter of the same rank nearest to the mix.

    Logs ``reference/moves``: how often it has moved. The moved reference is in the checkpoint, and a resumed run
    continues with it.

    Args:
        every_n_steps: optimizer steps between moves; the least number of them if there is a condition.
        alpha: the policy's share, above 0 and up to 1.
        min_kl: move only if the step's ``policy/kl`` is at least this.
        if_accuracy_improved: move only right after a validation, and only if its ``val/accuracy`` is above that of
            every validation at which the reference moved, and of the first. Where rewards do not tell right from wrong,
            ``val/reward`` is used instead.

    Raises:
        ConfigError: an option is out of its range, or the run has no reference, or no KL or validation to wait for.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        alpha: float = 1.0,
        min_kl: float | None = None,
        if_accuracy_improved: bool = False,
    ) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"ReferenceSync.every_n_steps: must be at least 1, not {every_n_steps}")
        if not 0 < alpha <= 1:
            raise ConfigError(f"ReferenceSync.alpha: must be above 0 and up to 1, not {alpha}")
        self.every_n_steps = every_n_steps
        self.alpha = alpha
        self.min_kl = min_kl
        self.if_accuracy_improved = if_accuracy_improved
        self.reset()

    def reset(self) -> None:
        self._moves = 0
        self._moved_at = 0
        self._best: float | None = None
        self._curve = ACCURACY  # what the best is the best of
        self._kl: float | None = None
        self._in_epoch = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module = policy_module(pl_module, self)
        if not module.wants_reference or module.policy_config.reference == "none":
            raise ConfigError(
                "ReferenceSync: this run has no reference to move: set model.beta above 0 and model.policy.reference "
                "to auto, or remove ReferenceSync"
            )
        if self.min_kl is not None and not module.has_kl:
            raise ConfigError(
                "ReferenceSync.min_kl: this run has no KL to the reference, which would never move: set model.beta "
                "above 0, or remove min_kl"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.if_accuracy_improved and not trainer.enable_validation:
            raise ConfigError(
                "ReferenceSync.if_accuracy_improved: this run does not validate, so the reference would never move: "
                "set trainer.limit_val_batches above 0"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._in_epoch = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._in_epoch = False

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self._kl = end.metrics.get("policy/kl")
        if not self.if_accuracy_improved and self._due(trainer):
            self._move(trainer, module)
        module.log("reference/moves", float(self._moves))

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        # A validation after the last step is followed by no step: a longer run would not have made it.
        # Lightning's sanity check validates a few batches only.
        if end.purpose != "val" or not self.if_accuracy_improved or trainer.sanity_checking:
            return
        if not (self._in_epoch or trainer.global_step == 0):
            return
        if end.result is None:
            return
        if (curve := end.ranked_by(self._curve)) != self._curve:
            self._curve, self._best = curve, None
        value = end.metrics[curve]
        if self._best is None:
            self._best = value
        elif value > self._best and self._due(trainer):
            self._best = value
            self._move(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {"moves": self._moves, "moved_at": self._moved_at, "best": self._best, "curve": self._curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._moves, self._best = state_dict["moves"], state_dict["best"]
        # Checkpoints of before had the step at which a move was due instead.
        self._moved_at = state_dict.get("moved_at", state_dict.get("due_at", 1) - 1)
        self._curve = state_dict.get("curve", ACCURACY)

    def _due(self, trainer: pl.Trainer) -> bool:
        """Metrics have been reduced over the ranks, so that all of them decide alike."""
        if trainer.global_step < (self._moved_at // self.every_n_steps + 1) * self.every_n_steps:
            return False
        return self.min_kl is None or (self._kl is not None and self._kl >= self.min_kl)

    def _move(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        policy_module(module, self).policy.sync_reference(self.alpha)
        self._moves += 1
        self._moved_at = trainer.global_step
