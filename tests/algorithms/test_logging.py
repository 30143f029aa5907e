"""What a module logs reaches loggers and callbacks: the numbers of a step at once, all else as Lightning does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.callbacks import VRAMProfiler
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import StepEnd
from grpo_lightning.rollout.events import RunCallback
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, llama_alone, same


class Calls(Logger):
    """Keeps every call."""

    name = "calls"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class OneOfEach(RunCallback):
    """Logs as a user's callback may."""

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if end.step == 0:
            module.log("mine/first", 7.0, prog_bar=True)
            assert trainer.callback_metrics["mine/first"] == 7.0
            assert trainer.progress_bar_metrics["mine/first"] == 7.0
        module.log("mine/mean", torch.tensor(float(end.step)), on_step=False, on_epoch=True)
        module.log("mine/tensor", torch.tensor(2.0 * end.step))


@llama_alone
def test_a_step_is_one_call_with_what_callbacks_logged(model_path: str, tmp_path: Path) -> None:
    logger, watch = Calls(), Watch()
    fit(tmp_path, grpo(model_path), 3, logger=logger, log_every_n_steps=1, callbacks=[VRAMProfiler(), watch])
    assert [step for step, _ in logger.calls] == [0, 1, 2]
    for (_, written), seen in zip(logger.calls, watch.logged, strict=True):
        assert {"reward/mean", "memory/update_peak_gib", "total/wall_s", "epoch"} <= written.keys()
        assert written.pop("epoch") == 0
        assert {name: seen[name] for name in written} == pytest.approx(written)


@llama_alone
def test_all_else_is_logged_as_lightning_does(model_path: str, tmp_path: Path) -> None:
    logger = Calls()
    fit(tmp_path, grpo(model_path), 3, logger=logger, log_every_n_steps=1, callbacks=[watch := Watch(), OneOfEach()])
    named = [(step, name, value) for step, written in logger.calls for name, value in written.items()]
    # A number is written for the step that logged it, and for no other.
    assert [(step, value) for step, name, value in named if name == "mine/first"] == [(0, 7.0)]
    assert [logged["mine/first"] for logged in watch.logged] == [7.0] * 3
    assert [(step, value) for step, name, value in named if name == "mine/tensor"] == [(0, 0.0), (1, 2.0), (2, 4.0)]
    assert [value for _, name, value in named if name == "mine/mean"] == [1.0]


@llama_alone
def test_only_the_steps_that_are_asked_for_are_written(model_path: str, tmp_path: Path) -> None:
    logger, watch = Calls(), Watch()
    fit(tmp_path, grpo(model_path), 5, logger=logger, log_every_n_steps=2, callbacks=[watch])
    assert [step for step, _ in logger.calls] == [1, 3]
    assert all("reward/mean" in logged for logged in watch.logged)


class OwnHook(GRPOModule):
    """Overrides a hook that is empty in Lightning, so a subclass need not call its parent's there."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("mine/hook", 1.0)


@llama_alone
def test_a_subclass_with_a_hook_of_its_own_has_the_same_curves_and_weights(model_path: str, tmp_path: Path) -> None:
    found, weights = [], []
    for kind in (GRPOModule, OwnHook):
        logger, module = Calls(), kind(PolicyConfig(model_path), [LetterVerifier()], adam)
        options = {"log_every_n_steps": 1, "val_check_interval": 2, "limit_val_batches": 1}
        weights.append(fit(tmp_path / kind.__name__, module, 3, logger=logger, **options))
        found.append(sorted((step, name) for step, written in logger.calls for name in written))
    assert (1, "reward/mean") in found[0]
    assert any(name == "val/accuracy" for _, name in found[0])
    assert same(*weights), "no step has the gradients of another one"
    assert found[1] == sorted([*found[0], *((step, "mine/hook") for step in range(3))])
