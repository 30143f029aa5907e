"""Hooks of Lightning in a subclass that does not call its parent's, as Lightning allows: they work, or are refused.

``test_logging.py`` has ``on_train_batch_end``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.callbacks import RunCheckpoint, RunSummary
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from tests.toy import LetterVerifier, ToyTask, Watch, adam, fit, llama_alone, rollouts, trainer


def made(kind: type[GRPOModule], path: str) -> GRPOModule:
    return kind(PolicyConfig(path), [LetterVerifier()], adam)


class OwnOptimizer(GRPOModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.policy.trainable_parameters(), lr=0.25)
        return {"optimizer": optimizer, "lr_scheduler": ConstantLR(optimizer, factor=0.5, total_iters=100)}


@llama_alone
def test_an_optimizer_of_ones_own_keeps_its_rate_when_it_is_resumed(model_path: str, tmp_path: Path) -> None:
    for steps, ckpt_path in ((1, None), (2, tmp_path / "checkpoints/last.ckpt")):
        watch = Watch()
        options = {"callbacks": [RunCheckpoint(), watch], "enable_checkpointing": True, "ckpt_path": ckpt_path}
        fit(tmp_path, made(OwnOptimizer, model_path), steps, **options)
        assert watch.logged[-1]["optim/lr"] == 0.125


class TwoOptimizers(GRPOModule):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.policy.trainable_parameters(), lr=0.1) for _ in range(2)]


class Plateau(GRPOModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.policy.trainable_parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "x"}}


class OwnClipping(GRPOModule):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        pass


class Averaging(GRPOModule):
    def configure_callbacks(self) -> list[pl.Callback]:
        return [StochasticWeightAveraging(swa_lrs=0.1)]


class OwnSave(GRPOModule):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1


@llama_alone
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (TwoOptimizers, r"TwoOptimizers.configure_optimizers: returned 2 optimizers and 0 schedules: a step takes one"),
        (Plateau, r"Plateau.configure_optimizers: ReduceLROnPlateau waits for a metric"),
        (OwnClipping, r"OwnClipping.configure_gradient_clipping: is never called.*: set model.max_grad_norm"),
        (Averaging, r"trainer.callbacks: StochasticWeightAveraging averages a copy"),
        (OwnSave, r"OwnSave.on_save_checkpoint: call super\(\).on_save_checkpoint\(checkpoint\)"),
    ],
)
def test_what_cannot_work_is_refused(model_path: str, tmp_path: Path, kind: type[GRPOModule], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, made(kind, model_path), 1, callbacks=[RunCheckpoint()], enable_checkpointing=True)


class OwnLoad(GRPOModule):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pass


class OwnStart(GRPOModule):
    def on_train_start(self) -> None:
        pass


@llama_alone
def test_what_a_checkpoint_holds_is_not_forgotten(model_path: str, tmp_path: Path) -> None:
    options = {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}
    fit(tmp_path, made(OwnLoad, model_path), 1, **options)
    with pytest.raises(ConfigError, match=r"OwnLoad.on_load_checkpoint: call super\(\)"):
        fit(tmp_path, made(OwnLoad, model_path), 2, ckpt_path=tmp_path / "checkpoints/last.ckpt", **options)


@llama_alone
def test_the_clocks_run_from_the_first_step_on(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, made(OwnStart, model_path), 2, callbacks=[watch])
    assert watch.logged[1]["total/wall_s"] > 0


@llama_alone
@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (EarlyStopping("val/reward"), r"EarlyStopping.mode: val/reward is better when higher: set mode: max"),
        (ModelCheckpoint(monitor="val/accuracy"), r"ModelCheckpoint.mode: val/accuracy is better when higher"),
        (GradientAccumulationScheduler({0: 2}), r"GradientAccumulationScheduler: set model.max_tokens_per_microbatch"),
    ],
)
def test_callbacks_that_do_harm_are_refused(model_path: str, tmp_path: Path, callback: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, made(GRPOModule, model_path), 1, callbacks=[callback], enable_checkpointing=True)


@llama_alone
def test_a_curve_of_training_stops_a_run_that_validates_first(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, stop = Watch(), EarlyStopping("reward/mean", mode="max", stopping_threshold=0.0)
    options = {"limit_val_batches": 1, "val_check_interval": 2}
    fit(tmp_path, made(GRPOModule, model_path), 6, callbacks=[RunSummary(), stop, watch], **options)
    assert len(watch.batches) == 2
    assert "\nstopped     EarlyStopping: Stopping threshold reached: reward/mean = " in capsys.readouterr().out


@llama_alone
def test_a_sanity_check_is_no_evaluation(model_path: str, tmp_path: Path) -> None:
    summary = RunSummary(validate_first=False)
    seen: list[int] = []
    summary.on_evaluation_end = lambda trainer, module, end: seen.append(trainer.global_step)
    options = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 1}
    fit(tmp_path, made(GRPOModule, model_path), 1, callbacks=[summary], **options)
    assert set(seen) == {1}


@llama_alone
@pytest.mark.parametrize("curriculum", [None, "uniform"])
def test_a_second_fit_of_a_trainer_goes_on(model_path: str, tmp_path: Path, curriculum: str | None) -> None:
    whole, parts = Watch(), Watch()
    data = {"task": ToyTask(rows=6), "prompts_per_step": 3, "group_size": 2, "curriculum": curriculum}
    fit(tmp_path, made(GRPOModule, model_path), 3, rollouts(**data), callbacks=[whole])
    again, module, shared = trainer(tmp_path, 1, callbacks=[parts]), made(GRPOModule, model_path), rollouts(**data)
    again.fit(module, datamodule=shared)
    again.fit_loop.epoch_loop.max_steps = 3
    again.fit(module, datamodule=shared)
    keys = [[[attempt.key for attempt in batch.attempts] for batch in watch.batches] for watch in (whole, parts)]
    assert keys[0] == keys[1]
