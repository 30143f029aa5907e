"""Whole runs through a real Trainer: learning, repeating, resuming, validating, several processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
)
from transformers import GPT2Config, GPT2LMHeadModel

from grpo_lightning.algorithms import GRPOModule, PPOModule, ScheduledEntropy, SFTModule
from grpo_lightning.callbacks import RunCheckpoint, RunSummary
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import pass_at_k
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout import RefinementConfig, RolloutDataModule, SamplingParams
from grpo_lightning.tasks import Tabular
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers import FormatVerifier
from tests.tiny import tiny_tokenizer
from tests.toy import (
    BrokenVerifier,
    LetterVerifier,
    ToyTask,
    Watch,
    adam,
    fit,
    grpo,
    lfm2_alone,
    llama_alone,
    rollouts,
    same,
    scheduled_rates,
    sgd,
    trainer,
)

LORA = LoRAConfig(r=4, alpha=8)


@lfm2_alone
def test_reward_rises(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, grpo(model_path, beta=0.01), 40, rollouts(prompts_per_step=4, group_size=8), callbacks=[watch])
    first = sum(logged["reward/mean"] for logged in watch.logged[:4]) / 4
    last = sum(logged["reward/mean"] for logged in watch.logged[-4:]) / 4
    assert last > first + 0.15


@llama_alone
def test_one_seed_repeats_and_two_differ(model_path: str, tmp_path: Path) -> None:
    one = fit(tmp_path, grpo(model_path), 3)
    assert same(one, fit(tmp_path, grpo(model_path), 3))
    assert not same(one, fit(tmp_path, grpo(model_path), 3, rollouts(seed=2)))


@llama_alone
def test_validation_leaves_no_trace_in_the_training_run(model_path: str, tmp_path: Path) -> None:
    without = fit(tmp_path, grpo(model_path, lora=LORA), 4)
    watched = {"limit_val_batches": 2, "val_check_interval": 1}
    data = rollouts(val_batch_size=4, pass_at_k=[1, 2])
    assert same(without, fit(tmp_path, grpo(model_path, lora=LORA), 4, data, **watched))


# -- checkpoints ------------------------------------------------------------------------------------------------------


@llama_alone
@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LORA, "beta": 0.05}, {"updates_per_rollout": 2, "minibatches_per_update": 2}, {"scheduler": True}],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(
    model_path: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = dict(options)
    if options.pop("scheduler", False):
        options["lr_scheduler"] = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    steps = options.get("updates_per_rollout", 1) * options.get("minibatches_per_update", 1)
    # 24 rows and 5 prompts a step: the run is interrupted in the middle of the second pass over the data.
    data = {"prompts_per_step": 5, "group_size": 3}
    validated = {"limit_val_batches": 1, "val_check_interval": 3, "enable_checkpointing": True}
    whole = fit(tmp_path / "whole", grpo(model_path, **options), 8 * steps, rollouts(**data), **validated)
    first = RunCheckpoint()
    fit(tmp_path / "part", grpo(model_path, **options), 6 * steps, rollouts(**data), callbacks=[first], **validated)
    resumed = fit(
        tmp_path / "part", grpo(model_path, **options), 8 * steps, rollouts(**data),
        ckpt_path=tmp_path / "part/checkpoints/last.ckpt", callbacks=[RunCheckpoint()], **validated,
    )  # fmt: skip
    assert same(whole, resumed)


@llama_alone
def test_a_run_that_ended_with_its_epochs_goes_on_where_it_was(model_path: str, tmp_path: Path) -> None:
    """Lightning restores no loader after an epoch that had ended, unless the run has ``max_steps``."""

    def run(name: str, epochs: int, **options: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
        watch, data = Watch(), rollouts(task=ToyTask(rows=6), prompts_per_step=3, group_size=3)
        options |= {"callbacks": [RunCheckpoint(), watch], "max_epochs": epochs, "enable_checkpointing": True}
        weights = fit(tmp_path / name, grpo(model_path), -1, data, **options)
        return weights, [batch.recipe.step for batch in watch.batches]

    whole, _ = run("whole", 4)
    _, before = run("part", 2)
    resumed, after = run("part", 4, ckpt_path=tmp_path / "part/checkpoints/last.ckpt")
    assert (before, after) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert same(whole, resumed)


@llama_alone
def test_a_limit_of_batches_gives_every_epoch_as_many_and_a_validation(model_path: str, tmp_path: Path) -> None:
    watch, seen = Watch(), list[int]()

    class Validated(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append(trainer.global_step)

    data = rollouts(task=ToyTask(rows=6), prompts_per_step=2, group_size=2)  # 3 steps are a pass
    options = {
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "check_val_every_n_epoch": 1,
        "val_check_interval": 1.0,
    }
    fit(tmp_path, grpo(model_path), -1, data, callbacks=[watch, Validated()], max_epochs=3, **options)
    assert [batch.recipe.step for batch in watch.batches] == [0, 1, 2, 3, 4, 5]
    assert seen == [2, 4, 6]


@llama_alone
def test_a_lora_checkpoint_holds_the_adapter_alone_and_loads_safely(model_path: str, tmp_path: Path) -> None:
    weights = fit(
        tmp_path, grpo(model_path, lora=LORA, beta=0.1), 1, callbacks=[RunCheckpoint()], enable_checkpointing=True
    )
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == weights.keys()
    assert all("lora_" in name for name in weights)


def test_the_checkpoint_of_another_policy_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    with pytest.raises(ConfigError, match="ckpt_path: the checkpoint is of another policy"):
        fit(tmp_path, grpo(tiny_model("llama"), lora=LORA), 2, ckpt_path=tmp_path / "checkpoints/last.ckpt")


def test_the_checkpoint_of_another_rank_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    fit(tmp_path, grpo(tiny_model("llama"), lora=LORA), 1, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    other = LoRAConfig(r=2, alpha=8)
    with pytest.raises(ConfigError, match=r"have another shape, such as .*lora_A"):
        fit(tmp_path, grpo(tiny_model("llama"), lora=other), 2, ckpt_path=tmp_path / "checkpoints/last.ckpt")


def warmup_then_cosine(optimizer: torch.optim.Optimizer) -> SequentialLR:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 6)], [3])


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.5),
        lambda optimizer: CosineAnnealingLR(optimizer, 8, eta_min=1e-3),
        lambda optimizer: OneCycleLR(optimizer, max_lr=2 * optimizer.defaults["lr"], total_steps=8),
        warmup_then_cosine,
        lambda optimizer: ChainedScheduler([ExponentialLR(optimizer, 0.9), LinearLR(optimizer, 0.1, total_iters=4)]),
    ],
    ids=["none", "lambda", "cosine", "one-cycle", "warm-up", "chained"],
)
def test_a_resumed_run_takes_the_learning_rate_of_its_config(
    tiny_model: Callable[[str], str], tmp_path: Path, scheduler: Any
) -> None:
    """The schedule goes on as if its run had had the new learning rate from the start."""

    def module(lr: float) -> GRPOModule:
        return grpo(
            tiny_model("llama"),
            lr_scheduler=scheduler,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        )

    fit(tmp_path, module(1e-2), 2, callbacks=[RunCheckpoint()], enable_checkpointing=True)
    last = tmp_path / "checkpoints/last.ckpt"
    watches = {lr: Watch() for lr in (1e-2, 3e-3)}
    for lr, watch in watches.items():
        fit(tmp_path, module(lr), 5, ckpt_path=last, callbacks=[watch])
    for lr, watch in watches.items():
        expected = scheduled_rates(scheduler, lr, 5)
        assert [logged["optim/lr"] for logged in watch.logged] == pytest.approx(expected[2:])


class DeepSpeed(DeepSpeedStrategy):
    """Stands for it where the package deepspeed is missing."""

    def __init__(self) -> None:
        DDPStrategy.__init__(self)


def test_strategies_that_deal_out_weights_are_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    refused = {
        "ModelParallelStrategy shards the weights; .*: use ddp, with model.shard_optimizer": ModelParallelStrategy(),
        "DeepSpeed shards the weights": DeepSpeed(),
        "static_graph": DDPStrategy(static_graph=True),
    }
    for text, strategy in refused.items():
        module = grpo(tiny_model("llama"))
        module.trainer = trainer(tmp_path, 1, strategy=strategy, devices=1)
        with pytest.raises(ConfigError, match=rf"trainer.strategy: {text}"):
            module.configure_callbacks()


@pytest.mark.parametrize("every", [None, 1, 4])
def test_checkpoints_are_ranked_by_what_their_weights_were_measured_at(
    tiny_model: Callable[[str], str], tmp_path: Path, every: int | None
) -> None:
    measured: dict[int, float] = {}

    class Measured(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            measured[trainer.global_step] = float(trainer.callback_metrics["val/accuracy"])

    keep = RunCheckpoint(save_top_k=-1, every_n_train_steps=every)
    validated = {"limit_val_batches": 1, "val_check_interval": 2, "enable_checkpointing": True}
    fit(tmp_path, grpo(tiny_model("llama")), 5, callbacks=[Measured(), RunSummary(), keep], **validated)
    assert list(measured) == [0, 2, 4, 5]
    scores = {torch.load(path, weights_only=True)["global_step"]: value for path, value in keep.best_k_models.items()}
    assert {step: float(score) for step, score in scores.items()} == {step: measured[step] for step in (2, 4, 5)}
    assert float(keep.best_model_score) == max(measured[step] for step in (2, 4, 5))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_a_validation_without_a_verdict_ranks_nothing(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Validation(pl.Callback):
        """Has every verdict of a validation break."""

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.verifiers["BrokenVerifier"].on = ""

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.verifiers["BrokenVerifier"].on = "never"

    keep, watch = RunCheckpoint(), Watch()
    module = grpo(tiny_model("llama"), verifiers=[BrokenVerifier("never")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(
            tmp_path, module, 2, callbacks=[Validation(), watch, keep], limit_val_batches=1, val_check_interval=1,
            enable_checkpointing=True,
        )  # fmt: skip
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt"}
    (shown,) = [{name: value for name, value in watch.logged[1].items() if name.startswith("val/")}]
    assert shown["val/errors"] == 1
    assert not {"val/accuracy", "val/reward", "val/format_valid"} & set(shown)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([{"monitor": "val/pass@8"}], r"checkpoint.monitor: val/pass@8 is measured only with .* which is \[1, 2\]"),
        ([{"monitor": "val/pas"}], "checkpoint.monitor: nothing is logged as val/pas: use one of val/accuracy, "),
        ([{"monitor": None, "save_top_k": 2}], "checkpoint.save_top_k: without a monitor nothing ranks 2 checkpoints"),
        ([{}, {"monitor": "val/reward"}], "trainer.callbacks: a second RunCheckpoint .* list lightning.pytorch"),
    ],
)
def test_checkpoints_that_nothing_ranks_are_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, options: list[dict[str, Any]], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(
            tmp_path, grpo(tiny_model("llama")), 1, rollouts(pass_at_k=[1, 2]),
            callbacks=[RunCheckpoint(**given) for given in options], limit_val_batches=1, val_check_interval=1,
            enable_checkpointing=True,
        )  # fmt: skip


def test_the_last_checkpoint_is_that_of_the_last_validation(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    saved: list[int] = []

    class See(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            last = tmp_path / "checkpoints/last.ckpt"
            saved.append(torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0)

    for keep, wanted in ((RunCheckpoint(), [0, 0, 2, 2, 4]), (RunCheckpoint(every_n_train_steps=3), [0, 0, 2, 3, 4])):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        saved.clear()
        # Nothing is ever correct, so that no validation is better than the first.
        module = grpo(tiny_model("llama"), verifiers=[FormatVerifier(pattern="never")])
        checked = {"limit_val_batches": 1, "val_check_interval": 2, "enable_checkpointing": True}
        fit(tmp_path, module, 5, callbacks=[See(), keep], **checked)
        assert saved == wanted


def test_steps_between_checkpoints_are_kept_where_a_batch_makes_several(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    saved: list[int] = []

    class Noting(RunCheckpoint):
        def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
            saved.append(trainer.global_step)
            super()._save_last_checkpoint(trainer, monitor_candidates)

    module = grpo(tiny_model("llama"), updates_per_rollout=3)
    keep = Noting(monitor=None, save_top_k=-1, every_n_train_steps=5)
    fit(tmp_path, module, 15, callbacks=[keep], enable_checkpointing=True)
    # Batches end at 3, 6, 9, 12 and 15: the first ones behind 5 and 10, and the third.
    assert saved == [6, 12, 15]
    # Without a monitor, no validation has to rank what is kept.
    names = {file.name for file in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best-step6.ckpt", "best-step12.ckpt", "last.ckpt"}


def test_a_checkpoint_callback_that_is_given_again_forgets_the_run_before(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    keep = RunCheckpoint(save_top_k=-1, every_n_train_steps=2)
    keep.monitor = "val/reward"  # as where no reward has told right from wrong
    keep.reset()
    assert keep.monitor == "val/accuracy"
    keep = RunCheckpoint(monitor=None, save_top_k=-1, every_n_train_steps=2)

    def run(folder: Path, steps: int, **options: Any) -> set[str]:
        fit(folder, grpo(tiny_model("llama")), steps, callbacks=[keep], enable_checkpointing=True, **options)
        return {file.stem for file in (folder / "checkpoints").iterdir()}

    first, again = tmp_path / "first", tmp_path / "again"
    assert run(first, 5) == {"best-step2", "best-step4", "last"}
    # The steps that are made again are saved again, and only in the new run.
    files = {file: file.stat().st_mtime_ns for file in first.rglob("*.ckpt")}
    assert run(again, 5, ckpt_path=first / "checkpoints/best-step2.ckpt") == {"best-step4", "last"}
    assert files == {file: file.stat().st_mtime_ns for file in first.rglob("*.ckpt")}
    (first / "checkpoints/best-step4.ckpt").unlink()
    assert run(first, 5, ckpt_path=first / "checkpoints/best-step2.ckpt") == {"best-step2", "best-step4", "last"}


class Break(pl.Callback):
    """Breaks a run off in the middle of an update, before its gradient is applied."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.at:
            raise KeyboardInterrupt


@llama_alone
def test_a_run_that_broke_off_in_an_update_loses_nothing(model_path: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", grpo(model_path), 5)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path / "part", grpo(model_path), 5, callbacks=[Break(3), RunCheckpoint()], enable_checkpointing=True)
    last = tmp_path / "part/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert same(whole, fit(tmp_path / "part", grpo(model_path), 5, ckpt_path=last))


@llama_alone
def test_a_run_that_broke_off_between_two_updates_makes_the_step_again(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(tmp_path / "whole", grpo(model_path, updates_per_rollout=2), 8)
    keep = RunCheckpoint(every_n_train_steps=2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(
            tmp_path / "part", grpo(model_path, updates_per_rollout=2), 8, callbacks=[Break(5), keep],
            enable_checkpointing=True,
        )  # fmt: skip
    last = tmp_path / "part/checkpoints/last.ckpt"
    again = f"within a step, which will be made again: continue with the same config and --ckpt_path {last}\n"
    assert again in capsys.readouterr().out
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert same(whole, fit(tmp_path / "part", grpo(model_path, updates_per_rollout=2), 8, ckpt_path=last))


class Terminate(pl.Callback):
    """Sends SIGTERM to this process in the middle of an update, as a scheduler does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@llama_alone
@pytest.mark.parametrize(("at", "saved"), [(1, 2), (4, 6)])
def test_a_run_that_was_terminated_ends_its_step_and_loses_nothing(
    model_path: str, tmp_path: Path, at: int, saved: int
) -> None:
    def run(folder: str, **options: Any) -> dict[str, torch.Tensor]:
        return fit(tmp_path / folder, grpo(model_path, updates_per_rollout=2), 8, **options)

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("part", callbacks=[Terminate(at), RunCheckpoint()], enable_checkpointing=True)
    last = tmp_path / "part/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved
    assert same(whole, run("part", ckpt_path=last))


@llama_alone
def test_before_the_first_step_has_ended_there_is_nothing_to_save(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, grpo(model_path), 2, callbacks=[Break(0), RunCheckpoint()], enable_checkpointing=True)
    assert "interrupted before the first step ended: there is nothing to continue from" in capsys.readouterr().out
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("break_at", "every"), [(None, 3), (3, None)], ids=["ended with a validation", "broke off in an update"]
)
def test_the_curves_of_a_resumed_run_have_every_step_once(
    tiny_model: Callable[[str], str], tmp_path: Path, break_at: int | None, every: int | None
) -> None:
    for steps, breaks in ((4, [] if break_at is None else [Break(break_at)]), (6, [])):
        last = tmp_path / "checkpoints/last.ckpt"
        with suppress(KeyboardInterrupt, SystemExit):
            fit(
                tmp_path, grpo(tiny_model("llama")), steps, rollouts(task=ToyTask(rows=60)),
                callbacks=[*breaks, RunSummary(), RunCheckpoint(every_n_train_steps=every)], enable_checkpointing=True,
                limit_val_batches=1, val_check_interval=2, ckpt_path=last if last.exists() else None,
                logger=TensorBoardLogger(str(tmp_path), name="", version=""), log_every_n_steps=1,
            )  # fmt: skip
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("policy/loss")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("folder", "hint"), [("run", "--ckpt_path {}/checkpoints/last.ckpt"), ("run/warm_start", "--run_dir {}")]
)
def test_a_run_that_broke_off_says_how_to_go_on(
    tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, hint: str
) -> None:
    path, options = tmp_path / folder, {"callbacks": [Break(1), RunCheckpoint()], "enable_checkpointing": True}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(path, grpo(tiny_model("llama")), 2, **options)
    assert f"step 1: continue with the same config and {hint.format(tmp_path / 'run')}\n" in capsys.readouterr().out


@llama_alone
def test_a_module_can_be_validated_before_it_is_trained(model_path: str, tmp_path: Path) -> None:
    module = grpo(model_path, beta=0.1)
    trainer(tmp_path, 1, limit_val_batches=1).validate(module, datamodule=rollouts())
    assert same(fit(tmp_path, module, 2), fit(tmp_path, grpo(model_path, beta=0.1), 2))


def test_schedules_are_left_alone_on_a_fresh_run_and_one_that_needs_a_metric_is_refused(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    def cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)

    watch = Watch()
    fit(tmp_path, grpo(tiny_model("llama"), lr_scheduler=cycle), 3, callbacks=[watch])
    alone = cycle(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2))
    for logged in watch.logged:
        assert logged["optim/lr"] == pytest.approx(alone.get_last_lr()[0]), "the rate of the step, not of the next one"
        alone.optimizer.step()
        alone.step()
    with pytest.raises(ConfigError, match=r"model.lr_scheduler: ReduceLROnPlateau waits for a metric"):
        fit(tmp_path, grpo(tiny_model("llama"), lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau), 1)


def test_overfit_batches_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.overfit_batches"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, overfit_batches=1)


# -- several processes ------------------------------------------------------------------------------------------------


class HalfSolved(ToyTask):
    """Any completion solves every second prompt, so that one of two processes may have nothing to refine."""

    def prompts(self, split: Any) -> list[Prompt]:
        solved = [replace(prompt, answer="\xff") for prompt in super().prompts(split)]
        return [pair[row % 2] for row, pair in enumerate(zip(solved, super().prompts(split), strict=True))]


class StoreCurves(pl.Callback):
    """Writes what each step logged into the run dir, but for what a clock measures."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            if not name.startswith(("time/", "throughput/", "total/")):
                self.curves.setdefault(name, []).append(float(value))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / "curves.json").write_text(json.dumps(self.curves))


@lfm2_alone
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregation": "dapo", "beta": 0.05},
        {"advantage": "batch-std"},
        {"minibatches_per_update": 2, "advantage": "batch-std"},
        {"top_entropy_share": 0.3, "entropy_bonus": ScheduledEntropy(0.05)},
        {"updates_per_rollout": 3, "target_kl": 3e-3},
        {"data": {"task": HalfSolved(), "prompts_per_step": 2, "refinement": RefinementConfig(budget=9)}},
        {"module": PPOModule, "critic": "separate", "beta": 0.0},
    ],
    ids=["defaults", "dapo", "batch-std", "minibatches", "entropy", "target-kl", "refinement", "ppo"],
)
def test_two_processes_train_what_one_does(model_path: str, tmp_path: Path, options: dict[str, Any]) -> None:
    # Five prompts for two processes: the shares differ, and no count is a multiple of another.
    options = dict(options)
    data = {"prompts_per_step": 5, "val_batch_size": 8} | options.pop("data", {})
    kind = options.pop("module", GRPOModule)
    run: dict[str, Any] = {"enable_checkpointing": True, "limit_val_batches": 1.0, "val_check_interval": 1}
    # Adam would blow rounding in gradients near 0 up to whole steps, after which other tokens may be drawn. With more
    # steps than these, other tokens are drawn at some time anyhow.
    defaults = {"verifiers": [LetterVerifier()], "beta": 0.0, "optimizer": sgd}
    # Which rows share a minibatch depends on the shares; there only steps and finiteness can be compared.
    is_comparable = "minibatches_per_update" not in options
    results = []
    for name, devices in (("one", 1), ("two", 2)):
        parallel = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        callbacks = [RunCheckpoint(every_n_train_steps=1), StoreCurves()]
        pl.seed_everything(0, verbose=False)
        module = kind(policy=PolicyConfig(path=model_path), **defaults | options)
        lightning = trainer(tmp_path / name, 2, callbacks=callbacks, **run, **parallel)
        lightning.fit(module, datamodule=rollouts(**data))
        checkpoint = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        curves = json.loads((tmp_path / name / "curves.json").read_text())
        results.append((checkpoint["state_dict"], checkpoint["global_step"], curves))
    (one, steps, curves), (two, other_steps, other_curves) = results
    assert steps == other_steps
    for name, tensor in one.items():
        assert torch.isfinite(two[name]).all()
        if is_comparable:
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
    assert curves.keys() == other_curves.keys()
    for name, values in curves.items() if is_comparable else ():
        assert other_curves[name] == pytest.approx(values, rel=5e-3, abs=1e-4), name


# -- evaluation -------------------------------------------------------------------------------------------------------


@llama_alone
def test_accuracy_and_pass_at_k_are_those_of_the_rollouts(model_path: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    class See(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            seen.append(batch)

    data = rollouts(val_batch_size=7, pass_at_k=[1, 2, 4], pass_samples=5)
    (metrics,) = trainer(tmp_path, 1, limit_val_batches=1.0, callbacks=[See()]).validate(
        grpo(model_path), datamodule=data
    )
    single = [attempt for batch in seen for attempt in batch.single.attempts]
    assert len(single) == 24
    assert metrics["val/accuracy"] == pytest.approx(sum(r.verdict.correct for r in single) / 24)
    assert metrics["val/length_mean"] == pytest.approx(sum(len(r.completion.token_ids) for r in single) / 24)
    groups = [b.sampled.attempts[i : i + 5] for b in seen for i in range(0, len(b.sampled), 5)]
    for k in (1, 2, 4):
        expected = sum(pass_at_k(5, sum(r.verdict.correct for r in group), k) for group in groups) / 24
        assert metrics[f"val/pass@{k}"] == pytest.approx(expected)
    assert {len(group) for group in groups} == {5}


@llama_alone
def test_broken_verdicts_do_not_count_as_wrong(model_path: str, tmp_path: Path) -> None:
    module = grpo(model_path, verifiers=[BrokenVerifier()])
    (metrics,) = trainer(tmp_path, 1).test(module, datamodule=rollouts(val_sampling=SamplingParams(max_new_tokens=30)))
    assert 0 < metrics["test/errors"] < 1
    assert metrics["test/format_valid"] == 1


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (8, 0, 4), (8, 8, 1), (6, 5, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(samples: int, correct: int, k: int) -> None:
    from itertools import combinations

    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(samples, correct, samples + 1)


# -- SFT --------------------------------------------------------------------------------------------------------------


def sft(path: str, **options: Any) -> SFTModule:
    return SFTModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, **options)


@lfm2_alone
def test_sft_learns_the_solutions_and_only_their_tokens(model_path: str, tmp_path: Path) -> None:
    module, watch = sft(model_path), Watch()
    fit(tmp_path, module, 60, callbacks=[watch])
    assert watch.logged[0]["policy/loss"] > 2
    assert watch.logged[-1]["policy/loss"] < 0.3
    tokens = watch.batches[0].tokens
    (ids,) = {tuple(tokens.ids_NL[row, p : p + 5].tolist()) for row, p in enumerate(tokens.prompt_lengths_N.tolist())}
    assert module.policy.tokenizer.decode(ids) == "eeee<|im_end|>"
    logprobs_NT, _ = module.policy.logprobs(tokens)
    expected = -logprobs_NT.sum() / 15
    assert watch.logged[-1]["policy/loss"] == pytest.approx(expected.item(), abs=0.3)
    (metrics,) = trainer(tmp_path, 1, limit_val_batches=1.0).validate(module, datamodule=rollouts())
    assert math.isclose(metrics["val/length_mean"], 5)


@lfm2_alone
def test_the_sft_gradient_does_not_depend_on_the_split(model_path: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, sft(model_path, max_tokens_per_microbatch=100_000), 3)
    split = fit(tmp_path, sft(model_path, max_tokens_per_microbatch=50), 3)
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_solution_beyond_the_positions_of_the_model_is_refused(tmp_path: Path) -> None:
    """The longest row, with its terminator, has ``len(prompt) + 61`` tokens: more than a completion may have."""
    rows = [{"prompt": "1+1?", "answer": "2", "solution": "2" * length} for length in (1, 60, 1)]
    task = Tabular({"train": rows, "val": rows}, solution_column="solution")
    prompt = len(encode_prompt(tiny_tokenizer(), task.prompts("train")[0].messages))
    for positions in (prompt + 61, prompt + 60):
        path = str(tmp_path / str(positions))
        shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "eos_token_id": 7, "bos_token_id": 1}
        GPT2LMHeadModel(GPT2Config(vocab_size=264, n_positions=positions, **shape)).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        data = rollouts(task=task, sampling=SamplingParams(max_new_tokens=4))
        refused = rf"a prompt and its solution have up to {prompt + 61} tokens, but GPT2LMHeadModel has {positions}"
        with pytest.raises(ConfigError, match=refused) if positions < prompt + 61 else nullcontext():
            fit(tmp_path, sft(path), 1, data)


class NoSolutions(ToyTask):
    def prompts(self, split: Any) -> Any:
        return [p if n < 2 else type(p)(p.messages, p.answer) for n, p in enumerate(super().prompts(split))]


def test_sft_needs_solutions(tiny_model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    text = (
        "data.task: SFT learns from .* NoSolutions has none of the row with the prompt 'train abab2': give every prompt"
    )
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, sft(tiny_model("llama")), 1, RolloutDataModule(NoSolutions()))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?"}\n{"prompt": "1+1?"}\n')
    task = Tabular(str(tmp_path / "rows.jsonl"), answer_column=None, val_size=1)
    with pytest.raises(
        ConfigError, match=r"'1\+1\?': name its column with data\.task\.init_args\.solution_column, or give"
    ):
        fit(tmp_path, sft(tiny_model("llama")), 1, RolloutDataModule(task))


def test_only_sft_and_only_training_need_solutions(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    data = rollouts(task=NoSolutions())
    fit(tmp_path, grpo(tiny_model("llama")), 1, data)
    trainer(tmp_path, 1, limit_val_batches=1).validate(
        sft(tiny_model("llama")), datamodule=rollouts(task=NoSolutions())
    )
    # The same data, set up before by a module that needed none.
    with pytest.raises(ConfigError, match="SFT learns from worked solutions"):
        fit(tmp_path, sft(tiny_model("llama")), 1, data)
