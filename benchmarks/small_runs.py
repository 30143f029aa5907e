"""Runs of the quickstart's decoder without files: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping

from grpo_lightning.algorithms import SFTModule
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import EvaluationEnd, RolloutDataModule, RunCallback, StepEnd
from grpo_lightning.verifiers import Verifier

DECODER = Path(__file__).resolve().parents[1] / "configs" / "tiny_decoder"


class Found(RunCallback):
    """Keeps the curves of each step and the last validation's accuracy."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, float]] = []
        self.accuracy = 0.0

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self.steps.append(end.metrics)

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        self.accuracy = end.metrics["val/accuracy"]


def trainer(folder: str, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False, check_val_every_n_epoch=None, callbacks=callbacks,
        default_root_dir=folder, **options,
    )  # fmt: skip


def optimizer(lr: float, parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)


def warm_start(data: RolloutDataModule, verifier: Verifier, accuracy: float, steps: int, folder: str) -> float:
    """Train the decoder on solutions until it solves some problems, save it, and return its accuracy.

    Args:
        data: its prompts.
        verifier: judges the validation.
        accuracy: enough of it.
        steps: at most as many.
        folder: where the policy is saved.
    """
    found = Found()
    module = SFTModule(PolicyConfig(str(DECODER), init="random"), [verifier], partial(optimizer, 3e-3))
    enough = EarlyStopping("val/accuracy", mode="max", stopping_threshold=accuracy, patience=1000)
    pl.seed_everything(1, verbose=False)
    data.prompts_per_step = 32
    trainer(folder, [found, enough], max_steps=steps, val_check_interval=20).fit(module, datamodule=data)
    module.policy.save_pretrained(folder)
    return found.accuracy
