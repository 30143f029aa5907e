"""The trained policy as a normal Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.rollout import EvaluationEnd, RunCallback


class PolicyExport(RunCallback):
    """Writes ``<run dir>/policy`` when training ends, for ``AutoModelForCausalLM`` or ``PeftModel`` to load.

    Args:
        merged: under LoRA, write full weights with the adapter merged in, instead of the adapter alone.
        best: write ``<run dir>/policy_best`` too, after each validation of a trained policy whose ``val/accuracy`` is
            above all before. A folder is written aside and then put in place, so that none is ever half written.
        enabled: ``false`` writes nothing.
    """

    def __init__(self, merged: bool = False, best: bool = False, enabled: bool = True) -> None:
        self.merged = merged
        self.best = best
        self.enabled = enabled
        self._best_accuracy = float("-inf")

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        # As with the best checkpoint, the policy before the first step is not a candidate.
        if not self.best or trainer.state.fn != "fit" or trainer.global_step == 0:
            return
        accuracy = end.metrics["val/accuracy"]
        if accuracy > self._best_accuracy:
            self._best_accuracy = accuracy
            self._write(trainer, module, "policy_best")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, "policy")

    def state_dict(self) -> dict[str, Any]:
        return {"best_accuracy": self._best_accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best_accuracy = state_dict["best_accuracy"]

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        if not self.enabled or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.default_root_dir) / name
        new, old = (folder.with_name(f".{name}.{state}") for state in ("new", "old"))
        if old.exists() and not folder.exists():
            old.rename(folder)  # A run that ended between the two renames below: this is all there is.
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        policy_module(pl_module, self).policy.save_pretrained(new, merged=self.merged)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
