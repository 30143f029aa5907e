"""Runs log the declared curves: all of them, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.algorithms import DistillationModule, GRPOModule, PPOModule, ScheduledEntropy, SFTModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.rollout_metrics import ROLLOUT_MAXIMA, ROLLOUT_MEANS, add_rollouts
from grpo_lightning.callbacks import AdaptiveKL, Cost, ReferenceSync, VRAMProfiler
from grpo_lightning.curves import CURVES, find
from grpo_lightning.environments import GuessNumber
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import Experience, RefinementConfig, ResampleConfig, SamplingParams
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.tasks import Mixture, TaskShare
from grpo_lightning.types import FinishReason, Verdict
from tests.toy import (
    BrokenVerifier,
    CopyEngine,
    LetterVerifier,
    Secrets,
    ToyTask,
    Watch,
    adam,
    experience,
    fit,
    grpo,
    rollouts,
    trainer,
)  # fmt: skip

TOKENS_PER_S = "throughput/rollout_tokens_per_s"
CUDA_ONLY = {"memory/reserved_gib", "memory/fragmentation"}
"""tests/callbacks/test_profiler.py sees them logged on a GPU."""


class Unsafe(LetterVerifier):
    unsafe = True


class Dreaming(GRPOModule):
    """With a phase that the framework does not know."""

    step_means = (*GRPOModule.step_means, "time/dream_s")

    def targets(self, experience: Experience, metrics: Any) -> Experience:
        with self.timed(metrics, "dream"):
            return super().targets(experience, metrics)


@pytest.fixture(scope="module")
def logged(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The curves of tiny runs that use all there is."""
    folder, path, watch = tmp_path_factory.mktemp("runs"), tiny_model("lfm2"), Watch()
    options: dict[str, Any] = {"callbacks": [watch], "limit_val_batches": 1, "val_check_interval": 1}
    for feedback in ("format", "verdict"):
        refinement = RefinementConfig(val_feedback=feedback)
        data = rollouts(refinement=refinement, sampling=SamplingParams(max_new_tokens=16, top_k=200), pass_at_k=[1, 2])
        verifiers = [Unsafe(), BrokenVerifier("q")]
        fit(folder, grpo(path, beta=0.1, verifiers=verifiers, max_error_rate=1.0), 2, data, **options)
    fit(folder, SFTModule(PolicyConfig(path=path), [LetterVerifier()], adam), 2, **options)
    common: dict[str, Any] = {"policy": PolicyConfig(path=path), "verifiers": [LetterVerifier()], "optimizer": adam}
    profiled = options | {"callbacks": [VRAMProfiler(), watch]}
    fit(folder, PPOModule(**common, beta=0.1, entropy_bonus=ScheduledEntropy()), 2, **profiled)
    fit(folder, Dreaming(**common), 2, **profiled)
    fit(folder, DistillationModule(**common, teacher="reference"), 1, callbacks=[watch])
    mixture = Mixture([TaskShare(ToyTask(), "toy")])
    fit(folder, grpo(path), 2, rollouts(task=mixture), **options)
    ahead = rollouts(engine=CopyEngine(), rollouts_ahead=1, resample_silent=ResampleConfig())
    fit(folder, grpo(path), 2, ahead, callbacks=[watch])
    episodes = rollouts(environment=GuessNumber(max_turns=2, max_tokens=300), task=Secrets())
    fit(folder, grpo(path, verifiers=[]), 2, episodes, **options)
    steered = [AdaptiveKL(), Cost(2.0), ReferenceSync(every_n_steps=1), watch]
    fit(folder, grpo(path, beta=0.1, sampler_correction="token"), 2, **options | {"callbacks": steered})
    tester = trainer(folder, 1, callbacks=[VRAMProfiler()], limit_test_batches=1)
    tester.test(grpo(path), datamodule=rollouts(), verbose=False)
    # Lightning adds the epoch to whatever is logged.
    return {name for one in [*watch.logged, tester.callback_metrics] for name in one} - {"epoch"}


def test_every_curve_of_a_run_is_declared(logged: set[str]) -> None:
    assert {
        "val/pass@2",
        "reward/Unsafe",
        "val/reward/BrokenVerifier",
        "test/accuracy",
        "memory/dream_peak_gib",
    } <= logged
    assert {name for name in logged if find(name) is None} == set()


def test_every_declared_curve_is_logged_by_a_run(logged: set[str]) -> None:
    found = {curve.name for name in logged if (curve := find(name)) is not None}
    assert CURVES.keys() - found == CUDA_ONLY


def test_further_attempts_without_a_verdict_count_in_no_share_and_their_tokens_in_the_throughput(
    tmp_path: Path,
) -> None:
    stop, nan = FinishReason.STOP, math.nan
    first = experience([(1.0, stop), (0.0, stop), (0.0, stop), (nan, stop)])  # of 1, 2, 3 and 4 tokens
    recipe = replace(first.recipe, refinement=RefinementConfig())
    # By hand: of the second and the third, 1 is solved and 1 breaks; 2 attempts at 2 prompts.
    broken = Verdict(correct=False, format_valid=False, error="gone")
    further = [
        replace(first.attempts[1], parent=1, number=2, verdict=Verdict(correct=True, format_valid=True), reward=1.0),
        replace(first.attempts[2], parent=2, number=2, verdict=broken, reward=nan),
    ]
    cases = {
        "failures": ([*first.attempts, *further], (1 / 1, 2 / 2, 2 / 2, 15 / 5)),
        "nothing": (first.attempts, (None, 0.0, 1 / 3, 10 / 5)),
    }
    names = ("refinement/correct", "refinement/attempts", "reward/correct_after_refinement", TOKENS_PER_S)
    for attempts, expected in cases.values():
        rows = experience_of(attempts, recipe, {"rollout": 5.0}, 0, torch.device("cpu"))
        metrics = StepMetrics(ROLLOUT_MEANS, ROLLOUT_MAXIMA)
        add_rollouts(rows, metrics, [])
        logged = metrics.reduce(trainer(tmp_path, 1).strategy)
        assert tuple(logged.get(name) for name in names) == expected
