"""A callback that records the resident memory of each training step, for `resident.py`, which must not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class StepMemory(pl.Callback):
    """Writes the peak resident memory of every training step, in MiB, to a file; the first entry precedes them."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.peaks: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take()

    def on_train_batch_end(self, *_: Any) -> None:
        self._take()
        self.file.write_text(json.dumps(self.peaks))

    def _take(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        self.peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
        Path("/proc/self/clear_refs").write_text("5")
