"""The trained policy as a normal Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class PolicyExport(pl.Callback):
    """Writes ``<run dir>/policy`` when training ends, for ``AutoModelForCausalLM`` or ``PeftModel`` to load.

    Args:
        merged: with LoRA, write full weights with the adapter merged in, in place of the adapter alone.
        enabled: ``false`` writes nothing.
    """

    def __init__(self, merged: bool = False, enabled: bool = True) -> None:
        self.merged = merged
        self.enabled = enabled

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.enabled and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            pl_module.policy.save_pretrained(Path(trainer.default_root_dir) / "policy", merged=self.merged)
