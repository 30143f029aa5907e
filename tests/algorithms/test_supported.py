"""What a module needs of its Trainer, and what it refuses before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.errors import ConfigError
from tests.toy import LetterVerifier, grpo, rollouts, trainer


def test_a_module_without_a_rollout_datamodule_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    text = r"trainer: GRPOModule takes its batches from a RolloutDataModule: call trainer.fit\(module, datamodule="
    for call in ("fit", "validate", "test", "predict"):
        with pytest.raises(ConfigError, match=text):
            getattr(trainer(tmp_path, 1), call)(grpo(tiny_model("llama")))


def test_a_checkpoint_alone_builds_no_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"last.ckpt holds the trained weights.* give the module's policy=\.\.\. and"):
        GRPOModule.load_from_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("callback", [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1), EMAWeightAveraging()])
def test_callbacks_that_average_the_module_are_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, callback: pl.Callback
) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.callbacks: {type(callback).__name__} averages a copy .*: omit it"):
        trainer(tmp_path, 1, callbacks=[callback]).fit(grpo(tiny_model("llama")), datamodule=rollouts())


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (GradientAccumulationScheduler({0: 2}), "set model.max_tokens_per_microbatch"),
        (BatchSizeFinder(), "set model.max_tokens_per_microbatch instead: grpo plan"),
        (LearningRateFinder(), "it needs automatic optimization"),
        (BackboneFinetuning(), "set model.policy.lora"),
    ],
)
def test_callbacks_that_a_step_has_no_use_for_are_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, callback: pl.Callback, said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.callbacks: {type(callback).__name__}: .*{said}"):
        trainer(tmp_path, 1, callbacks=[callback]).fit(grpo(tiny_model("llama")), datamodule=rollouts())


def test_one_verifier_is_taken_as_a_list(tiny_model: Callable[[str], str]) -> None:
    one, several = LetterVerifier(), [LetterVerifier()]
    assert list(grpo(tiny_model("llama"), verifiers=one).verifiers) == ["LetterVerifier"]
    assert list(grpo(tiny_model("llama"), verifiers=several).verifiers) == ["LetterVerifier"]
    assert rollouts(pass_at_k=2).pass_at_k == [2]
    assert rollouts(pass_at_k=[1, 2]).pass_at_k == [1, 2]
