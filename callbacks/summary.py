"""Before and after: a full validation before the first step, and what came of a run or an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from grpo_lightning.lightning_private import set_logged_step, validate_now
from grpo_lightning.rollout import EvaluationEnd, RunCallback, StepEnd

from .rollouts import RolloutLogger


class RunSummary(RunCallback):
    """Validates before the first step and after the last, and prints what came of the run.

    ``test`` and ``validate`` print the accuracy with its 95 % interval (Wilson), and where the samples are. Where
    rewards do not tell right from wrong, the mean reward is used instead of the accuracy.

    Args:
        validate_first: whether to validate before the first step.
    """

    def __init__(self, validate_first: bool = True) -> None:
        self.validate_first = validate_first
        self.reset()

    def reset(self) -> None:
        self._validated_at: int | None = None
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._evaluation: EvaluationEnd | None = None
        self._validated = ("accuracy", "val/accuracy")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.validate_first or trainer.global_step != 0:
            return
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Lightning ends a run whose EarlyStopping finds no value, and only curves of validation have one yet.
        trainer.callbacks = [  # type: ignore[attr-defined]
            one for one in callbacks if not isinstance(one, EarlyStopping) or one.monitor.startswith(("val/", "val_"))
        ]
        try:
            validate_now(trainer)
        finally:
            trainer.callbacks = callbacks  # type: ignore[attr-defined]

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self._see("reward/mean", end.metrics)

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        if end.purpose == "val":
            self._validated_at = trainer.global_step
        for name in ("val/accuracy", "val/reward"):
            self._see(name, end.metrics)
        if end.accuracy is None and end.reward is not None:
            self._validated = ("val reward", "val/reward")
        self._evaluation = end

    def on_last_step_complete(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Validate the final policy, if the last validation was of an earlier one: what is exported next says so."""
        if self._validated_at != trainer.global_step:
            # As all validations but the first: at the step before it, so that it belongs to the steps that were made.
            set_logged_step(trainer, max(0, self.data_module.steps_done - 1))
            validate_now(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self._evaluation is None:
            return
        if self._evaluation.result is not None:
            name, value = self._evaluation.result
            print(f"{name}: {value}, {self._evaluation.prompts} prompts")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RolloutLogger) and callback.run_dir is not None:
                print(f"every completion: grpo samples {callback.run_dir}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.on_test_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print("\n" + "\n".join(f"{name:<12}{text}" for name, text in self._lines(trainer)))

    def state_dict(self) -> dict[str, Any]:
        return {"first": dict(self._first), "validated_at": self._validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = dict(state_dict["first"])
        self._validated_at = state_dict.get("validated_at")  # which older checkpoints do not have

    def _see(self, name: str, metrics: Mapping[str, float]) -> None:
        if name in metrics:
            self._last[name] = metrics[name]
            self._first.setdefault(name, self._last[name])

    def _lines(self, trainer: pl.Trainer) -> list[tuple[str, str]]:
        run_dir = Path(trainer.default_root_dir)
        lines = [
            (label, f"{self._first[name]:.3f} -> {self._last[name]:.3f}   ({name}, first -> last)")
            for label, name in (self._validated, ("reward", "reward/mean"))
            if name in self._last
        ]
        lines.append(("steps", str(trainer.global_step)))
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for one in callbacks:
            if isinstance(one, EarlyStopping) and one.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
                lines.append(("stopped", f"{type(one).__name__}: {one.stopping_reason_message}"))
        lines.append(("run dir", str(run_dir)))
        places = {
            "checkpoint": run_dir / "checkpoints" / "last.ckpt",
            "policy": run_dir / "policy",
            "best policy": run_dir / "policy_best",
        }
        lines += [(label, str(path)) for label, path in places.items() if path.exists()]
        if (run_dir / "rollouts").is_dir():
            lines.append(("samples", f"grpo samples {run_dir} --open"))
        if any(run_dir.glob("events.out.tfevents.*")):
            lines.append(("report", f"grpo compare {run_dir}"))
            lines.append(("curves", f"tensorboard --logdir {_runs_root(run_dir)}"))
        return lines


def _runs_root(run_dir: Path) -> Path:
    """``runs`` of ``runs/<config>/<run>``: all runs side by side; else the run itself."""
    return next((parent for parent in run_dir.parents if parent.name == "runs"), run_dir)
