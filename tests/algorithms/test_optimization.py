"""Optimizer and schedule as configured: which are refused, and what a resumed run takes from its config."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from grpo_lightning.algorithms.optimization import Optimization
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.errors import ConfigError
from tests.tiny import save_tiny_model
from tests.toy import Watch, fit, grpo, scheduled_rates

MAKE = {
    "none": None,
    "cosine 4": partial(CosineAnnealingLR, T_max=4),
    "cosine 8": partial(CosineAnnealingLR, T_max=8),
    "linear": partial(LinearLR, start_factor=1.0, end_factor=0.5, total_iters=8),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.5, total_iters=1), CosineAnnealingLR(optimizer, 8)], [1]
    ),
    "lambda": partial(LambdaLR, lr_lambda=math.exp),
    "one cycle": OneCycleLR,
    "short cycle": partial(OneCycleLR, max_lr=0.1, total_steps=1),
    "no length": partial(CosineAnnealingLR, T_max=0),
}


class CountsItself(torch.optim.AdamW):
    """Keeps state in its groups, as Prodigy does."""

    def __init__(self, parameters: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["calls"] = 0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["calls"] += 1
        return super().step(closure)


def module(path: str, optimizer: Any = CountsItself, schedule: str = "none", **options: Any) -> Any:
    return grpo(path, optimizer=optimizer, lr_scheduler=MAKE[schedule], **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def checkpoint_of(path: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a run of two steps with a schedule."""
    made: dict[str, Path] = {}

    def checkpoint(schedule: str) -> Path:
        if schedule not in made:
            folder = tmp_path_factory.mktemp("run")
            watched = {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}
            fit(folder, module(path, schedule=schedule), 2, **watched)
            made[schedule] = folder / "checkpoints/last.ckpt"
        return made[schedule]

    return checkpoint


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("cosine 4", "cosine 4", None),
        ("cosine 4", "cosine 8", "schedule CosineAnnealingLR, lr 0.00853553 (was 0.005)"),
        ("cosine 4", "none", "no schedule, lr 0.01 (was 0.005)"),
        ("cosine 4", "sequence", "schedule SequentialLR, lr 0.0096194 (was 0.005)"),
        ("none", "linear", "schedule LinearLR, lr 0.00875 (was 0.01)"),
    ],
)
def test_a_resumed_run_has_the_schedule_of_its_config_as_if_it_had_been_there_from_the_start(
    path: str, checkpoint_of: Any, tmp_path: Path, caplog: Any, before: str, after: str, said: str | None
) -> None:
    watch = Watch()
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path, module(path, schedule=after), 5, ckpt_path=checkpoint_of(before), callbacks=[watch])
    lines = [message for message in caplog.messages if message.startswith("resumed with")]
    assert lines == ([] if said is None else [f"resumed with the config, where the checkpoint differs: {said}"])
    expected = scheduled_rates(MAKE[after], 1e-2, 5)
    assert [logged["optim/lr"] for logged in watch.logged] == pytest.approx(expected[2:])


def test_a_resumed_run_has_the_optimizers_options_of_its_config_and_the_state_of_its_checkpoint(
    path: str, checkpoint_of: Any, tmp_path: Path, caplog: Any
) -> None:
    resumed = module(path, partial(CountsItself, weight_decay=0.5))
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path, resumed, 3, ckpt_path=checkpoint_of("none"))
    assert "the checkpoint differs: weight_decay 0.5 (was 0)" in caplog.text
    (optimizer,) = resumed.trainer.optimizers
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["calls"]) == (0.5, 3)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            r"holds the state of test\w+\.CountsItself, from which torch\.SGD cannot continue: resume with the former",
        ),
        (partial(torch.optim.AdamW, amsgrad=True), r"amsgrad: is True, but .* made with False: resume with False"),
    ],
)
def test_state_that_an_optimizer_cannot_continue_from_is_refused(
    path: str, checkpoint_of: Any, tmp_path: Path, optimizer: Any, text: str
) -> None:
    saved = checkpoint_of("none")
    if "amsgrad" in text:  # a checkpoint from before it named the class of its optimizer
        checkpoint = torch.load(saved, weights_only=True)
        del checkpoint["optimizer_class"]
        saved = tmp_path / "older.ckpt"
        torch.save(checkpoint, saved)
    with pytest.raises(ConfigError, match=rf"^model\.optimizer.*{text}"):
        fit(tmp_path, module(path, optimizer), 3, ckpt_path=saved)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "text"),
    [
        (torch.optim.LBFGS, "none", "model.optimizer: LBFGS computes the loss several times per step"),
        (torch.optim.SparseAdam, "none", "model.optimizer: SparseAdam takes sparse gradients alone"),
        (CountsItself, "one cycle", "model.lr_scheduler: .* missing 1 required positional argument: 'max_lr'"),
        (CountsItself, "lambda", "model.lr_scheduler: LambdaLR cannot be saved: .*no attribute '__dict__'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(optimizer: Any, schedule: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Optimization(optimizer, MAKE[schedule]).configure([torch.nn.Parameter(torch.ones(1))], is_resumed=False)


def test_a_run_that_makes_more_steps_than_its_schedule_may_last_says_so(path: str, tmp_path: Path, caplog: Any) -> None:
    options = {"updates_per_rollout": 2, "minibatches_per_update": 2}
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        for schedule, steps in (("none", 2), ("linear", 4), ("linear", 2)):
            assert "trainer.max_steps" not in caplog.text
            fit(tmp_path, module(path, schedule=schedule, **options), steps)
    assert "trainer.max_steps: 2 falls among the 4 optimizer steps of a rollout" in caplog.text
    assert "the length of model.lr_scheduler to 4" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ("short cycle", "OneCycleLR: Tried to step 2 times. The specified number of total steps is 1"),
        ("no length", "CosineAnnealingLR: .*modulo by zero"),
    ],
)
def test_a_schedule_that_ends_before_the_run_is_one_sentence(
    path: str, tmp_path: Path, schedule: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.lr_scheduler: {text}"):
        fit(tmp_path, module(path, schedule=schedule), 3)
