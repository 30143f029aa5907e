"""The trained policy as a normal Hugging Face folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import EvaluationEnd, RunCallback
from grpo_lightning.rollout.events import ACCURACY

from .hub import check_hub, push_folder
from .model_card import model_card

log = logging.getLogger(__name__)


class PolicyExport(RunCallback):
    """Writes ``<run dir>/policy`` when training ends, for ``AutoModelForCausalLM`` or ``PeftModel`` to load.

    Its ``README.md`` is a model card: base, data, verifiers, the accuracies (or rewards) of validation with intervals,
    settings, command and versions, without local paths and keys.

    A folder is written aside and then put in place, so that none is ever half written.

    Args:
        merged: under LoRA, write full weights with the adapter merged in, instead of the adapter alone. Those of a
            4-bit base are unpacked to ``model.policy.dtype``.
        best: write ``<run dir>/policy_best`` too, after each validation of a trained policy whose ``val/accuracy`` is
            above all before; once a validation has rewards that do not tell right from wrong, ``val/reward`` is used
            instead.
        push_to_hub: push ``policy`` to this repository of the Hugging Face hub when training ends, such as
            ``me/my-policy``; it is made if it does not exist. Whether somebody is logged in is checked before the run.
        private: whether a repository that is made is private.
        enabled: ``false`` writes nothing.

    Raises:
        ConfigError: ``push_to_hub`` without a valid name or a login, or with ``enabled: false``.
    """

    def __init__(
        self,
        merged: bool = False,
        best: bool = False,
        push_to_hub: str | None = None,
        private: bool = True,
        enabled: bool = True,
    ) -> None:
        self.merged = merged
        self.best = best
        self.push_to_hub = push_to_hub
        self.private = private
        self.enabled = enabled
        if push_to_hub is not None and not enabled:
            raise ConfigError("export.push_to_hub: nothing is written with export.enabled=false")
        self.reset()

    def reset(self) -> None:
        self._best = float("-inf")
        self._curve = ACCURACY  # what the best is the best of
        self._results: dict[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.push_to_hub is not None:
            check_hub(self.push_to_hub, "export.push_to_hub")

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        if trainer.state.fn != "fit" or end.result is None:
            return
        name, value = end.result
        when = "before training" if trainer.global_step == 0 else "after training"
        steps = f", after {trainer.global_step:,} optimizer steps" if trainer.global_step else ""
        self._results[f"validation {name} {when}"] = f"{value}, {end.prompts} prompts{steps}"
        # As with the best checkpoint, the policy before the first step is not a candidate.
        if (curve := end.ranked_by(self._curve)) != self._curve:
            self._curve, self._best = curve, float("-inf")
        score = end.metrics[curve]
        if self.best and trainer.global_step > 0 and score > self._best:
            self._best = score
            self._write(trainer, module, "policy_best")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = self._write(trainer, pl_module, "policy")
        if self.push_to_hub is not None and folder is not None:
            push_folder(folder, self.push_to_hub, self.private)

    def state_dict(self) -> dict[str, Any]:
        return {"best_accuracy": self._best, "curve": self._curve, "results": dict(self._results)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best_accuracy"]
        # Which older checkpoints do not have.
        self._curve = state_dict.get("curve", ACCURACY)
        self._results = dict(state_dict.get("results", {}))

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> Path | None:
        """Return the folder that was written; ``None`` where none is."""
        if not self.enabled or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return None
        folder = Path(trainer.default_root_dir) / name
        new, old = (folder.with_name(f".{name}.{state}") for state in ("new", "old"))
        if old.exists() and not folder.exists():
            old.rename(folder)  # A run that ended between the two renames below: this is all there is.
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        policy = policy_module(pl_module, self).policy
        policy.save_pretrained(new, merged=self.merged)
        is_adapter = policy.has_lora and not self.merged
        weights = policy.weights_note(self.merged)
        if weights and not is_adapter:
            log.info("%s: %s", folder.name, weights)
        card = model_card(folder.parent, policy.config.path, list(self._results.items()), is_adapter, weights)
        (new / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder
