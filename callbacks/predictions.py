"""Completions with their verdicts, as JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict`` samples to ``<run dir>/predictions.jsonl``, batch by batch; one file a rank.

    Args:
        filename: of the first rank's file; the others put their rank before its ending.
    """

    def __init__(self, filename: str = "predictions.jsonl") -> None:
        super().__init__(write_interval="batch")
        self.filename = filename

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if batch_idx == 0 else "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in prediction)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"completions with their verdicts: {self._path(trainer)}")

    def _path(self, trainer: pl.Trainer) -> Path:
        path = Path(trainer.default_root_dir) / self.filename
        return path if trainer.is_global_zero else path.with_suffix(f".rank{trainer.global_rank}{path.suffix}")
