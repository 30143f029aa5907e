"""What the project uses of Lightning beyond its promises: each test says what a newer Lightning has changed."""

from __future__ import annotations

import ast
import inspect
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from grpo_lightning.lightning_private import (
    FilteringCLI,
    SavingCheckpoint,
    end_on_requeue_signal,
    give_back_signal_handlers,
    has_static_graph,
    set_logged_step,
    set_optimizer_steps,
    set_sigterm_handler,
    validate_now,
)
from tests.test_structure import ROOT, SOURCES

CHANGED = f"lightning {lightning.__version__} is not as 2.6.6, in which lightning_private.py was read: "


class Line(pl.LightningModule):
    """Fits a line; nothing of this project is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.validations: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().sum()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validations.append(self.trainer.global_step)
        self.log("val", 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, callbacks: list[pl.Callback], module: Line, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 3, "logger": False,
    }  # fmt: skip
    trainer = pl.Trainer(default_root_dir=str(folder), callbacks=callbacks, **defaults | options)
    loader = DataLoader(torch.ones(3, 1), batch_size=1)
    trainer.fit(module, loader, DataLoader(torch.ones(1, 1)))
    return trainer


def test_the_logged_step_is_the_one_that_was_set(tmp_path: Path) -> None:
    class Set(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            assert hasattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped"), CHANGED + "_batches_that_stepped"
            set_logged_step(trainer, 40 + trainer.global_step)

    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, [Set()], Line(), logger=logger, enable_checkpointing=False)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    steps = [int(line.split(",")[column]) for line in lines[1:]]
    assert {40, 41, 42} <= set(steps), CHANGED + "loggers no longer get _batches_that_stepped as the step"


def test_a_trainer_can_be_put_behind_some_optimizer_steps() -> None:
    class Manual(Line):
        automatic_optimization = False

    module = Manual()
    trainer = pl.Trainer(accelerator="cpu", barebones=True)
    trainer.strategy.connect(module)
    set_optimizer_steps(trainer, 7)
    assert trainer.global_step == 7, CHANGED + "global_step no longer reads optim_step_progress"


def test_a_validation_can_be_run_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    class Now(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            validate_now(trainer)
            assert trainer.training, CHANGED + "Trainer.training is no longer set by assignment"

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            validate_now(trainer)

    module = Line()
    trainer = fit(tmp_path, [Now()], module, enable_checkpointing=False, val_check_interval=2)
    assert module.validations == [0, 2, 3], CHANGED + "fit_loop.epoch_loop.val_loop.run() does not validate"
    assert trainer.global_step == 3
    unvalidated = Line()
    fit(tmp_path, [Now()], unvalidated, enable_checkpointing=False, limit_val_batches=0)
    assert unvalidated.validations == []


def test_the_handler_of_sigterm_can_be_replaced_and_takes_slurms_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "77"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    class Send(pl.Callback):
        def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            set_sigterm_handler(trainer, lambda number, frame: seen.append(number))
            end_on_requeue_signal(trainer)

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGUSR1)

    trainer = fit(tmp_path, [Send()], Line(), enable_checkpointing=False)
    assert seen == [signal.SIGTERM, signal.SIGUSR1], CHANGED + "_SignalConnector registers other methods"
    assert trainer.global_step == 3, CHANGED + "SIGTERM has another handler, too"
    connector = trainer._signal_connector
    ours = (connector._sigterm_notifier_fn, connector._slurm_sigusr_handler_fn)
    give_back_signal_handlers(trainer)
    given_back = (connector._sigterm_notifier_fn, connector._slurm_sigusr_handler_fn)
    assert all(inspect.ismethod(handler) and handler not in ours for handler in given_back)


def test_the_options_of_ddp_are_read() -> None:
    assert has_static_graph(DDPStrategy(static_graph=True)), CHANGED + "DDPStrategy._ddp_kwargs"
    assert not has_static_graph(DDPStrategy())


def test_a_checkpoint_saves_when_it_is_told(tmp_path: Path) -> None:
    seen = []

    class Told(SavingCheckpoint):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                assert self.may_save(trainer)
                self.save_best(trainer)
                assert not list(tmp_path.glob("best*")), "val has not been logged yet"
                self.save_as_last(trainer)
                seen.append((self.last_saved_step, self.may_save(trainer), self.may_save_on_exception(trainer)))

        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.save_best(trainer)

    callback = Told(dirpath=tmp_path, monitor="val", mode="max", filename="best", save_last=True, every_n_train_steps=7)
    assert callback.save_interval == 7
    trainer = fit(tmp_path, [callback], Line())
    assert seen == [(2, False, False)]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3
    assert callback.saves_at_epoch_end(trainer) in (True, False)
    callback.forget_best(trainer)
    assert not (tmp_path / "best.ckpt").exists()
    assert callback.check_monitor_top_k(trainer, torch.tensor(-1e9)), "the worst value is the best again"
    callback.forget_saved()
    assert (callback.last_saved_step, callback.last_model_path, callback.best_model_path) == (0, "", "")
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(SavingCheckpoint))))  # type: ignore[arg-type]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and isinstance(node.value, ast.Name)
        if node.value.id == "self"
    }
    assert len(used) == 11
    missing = [name for name in used if not hasattr(ModelCheckpoint(dirpath=tmp_path), name)]
    assert not missing, f"{CHANGED}ModelCheckpoint has no {missing}"


def test_a_cli_can_omit_the_callbacks_that_it_adds(tmp_path: Path) -> None:
    assert hasattr(LightningCLI, "_instantiate_trainer"), CHANGED + "LightningCLI._instantiate_trainer"

    class Added(pl.Callback):
        pass

    class CLI(FilteringCLI):
        keep = True

        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(Added, "added")

        def added_callbacks(self, config: dict[str, Any], callbacks: Any) -> list[pl.Callback]:
            assert config["max_steps"] == 5
            assert [type(callback) for callback in callbacks] == [Added]
            return list(callbacks) if self.keep else []

    arguments = ["--trainer.max_steps", "5", "--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    for keep in (True, False):
        CLI.keep = keep
        trainer = CLI(Line, save_config_callback=None, args=arguments, run=False).trainer
        kept = any(isinstance(callback, Added) for callback in trainer.callbacks)
        assert kept is keep, CHANGED + "LightningCLI._instantiate_trainer no longer gets its own callbacks apart"


PRIVATE = {
    name
    for kind in (pl.Trainer, ModelCheckpoint, LightningCLI, DDPStrategy)
    for name in dir(kind)
    if name.startswith("_") and not name.startswith("__")
}
PRIVATE |= {"_batches_that_stepped", "_ddp_kwargs", "_every_n_train_steps", "_last_global_step_saved"}
PRIVATE |= {"_signal_connector", "_sigterm_notifier_fn", "_slurm_sigusr_handler_fn"}
PRIVATE |= {"fit_loop", "epoch_loop"}  # without an underscore, and undocumented


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_other_file_uses_private_names_of_lightning(file: Path) -> None:
    if file.name == "lightning_private.py":
        return
    tree = ast.parse(file.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
        if node.value.id == "self"
    }
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (used & PRIVATE) - own


def test_the_test_of_private_names_sees_them() -> None:
    assert {"_instantiate_trainer", "_should_skip_saving_checkpoint", "_save_last_checkpoint"} <= PRIVATE
