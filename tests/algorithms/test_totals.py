"""What a run has cost so far: counted right, carried on by checkpoints, and logged by every algorithm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from grpo_lightning.algorithms.totals import Totals
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from tests.algorithms.test_runs import sft
from tests.rollout.test_refinement import Parity
from tests.toy import Watch, fit, grpo, llama_alone, rollouts


@llama_alone
def test_tokens_are_those_of_the_rollouts_and_of_the_updates(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    # With beta above 0 every row is learned from, in each of the two passes.
    fit(tmp_path, grpo(model_path, beta=0.1, updates_per_rollout=2), 6, callbacks=[watch])
    sampled = trained = 0
    for batch, logged in zip(watch.batches, watch.logged, strict=True):
        sampled += sum(len(rollout.completion.token_ids) for rollout in batch.attempts)
        trained += 2 * int(batch.tokens.completion_lengths_N.sum())
        assert logged["total/rollout_tokens"] == sampled
        assert logged["total/train_tokens"] == trained


@llama_alone
def test_further_attempts_count(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    data = rollouts(refinement=RefinementConfig(budget=3), sampling=SamplingParams(max_new_tokens=80))
    fit(tmp_path, grpo(model_path, verifiers=[Parity(accept_truncated=True)]), 1, data, callbacks=[watch])
    (batch,) = watch.batches
    attempts = batch.attempts
    assert len(attempts) > batch.first
    assert watch.logged[0]["total/rollout_tokens"] == sum(len(r.completion.token_ids) for r in attempts)


@llama_alone
def test_sft_trains_tokens_and_samples_none(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, sft(model_path), 3, callbacks=[watch])
    assert watch.logged[-1]["total/rollout_tokens"] == 0
    assert watch.logged[-1]["total/train_tokens"] == sum(
        int(one.tokens.completion_lengths_N.sum()) for one in watch.batches
    )


@llama_alone
def test_a_resumed_run_goes_on_counting(model_path: str, tmp_path: Path) -> None:
    run: dict[str, Any] = {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}
    fit(tmp_path, grpo(model_path), 3, **run)
    last = tmp_path / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["totals"]
    assert {type(value) for value in saved.values()} <= {int, float}
    whole, part = Watch(), Watch()
    fit(tmp_path / "whole", grpo(model_path), 5, callbacks=[whole])
    fit(tmp_path, grpo(model_path), 5, ckpt_path=last, callbacks=[part])
    for name in ("rollout_tokens", "train_tokens"):
        assert part.logged[-1][f"total/{name}"] == whole.logged[-1][f"total/{name}"] > saved[name] > 0
    for name in ("wall_s", "cpu_s"):
        curve = [logged[f"total/{name}"] for logged in part.logged]
        assert curve[0] >= saved[name] * 0.999
        assert curve == sorted(curve)


def test_the_clocks_start_with_the_training_and_stand_still_in_between() -> None:
    totals = Totals()
    assert totals.state() == {"wall_s": 0.0, "cpu_s": 0.0, "rollout_tokens": 0, "train_tokens": 0}
    totals.load({"wall_s": 100.0, "cpu_s": 50.0, "rollout_tokens": 7, "train_tokens": 9})
    assert totals.state() == {"wall_s": 100.0, "cpu_s": 50.0, "rollout_tokens": 7, "train_tokens": 9}
    totals.start()
    sum(number * number for number in range(300_000))
    time.sleep(0.01)
    now = totals.state()
    assert now["wall_s"] > 100.01
    assert now["cpu_s"] > 50.0


def test_the_time_between_two_trainings_does_not_count() -> None:
    totals = Totals()
    totals.start()
    time.sleep(0.02)
    totals.stop()
    first = totals.state()
    assert first["wall_s"] >= 0.02
    time.sleep(0.3)
    assert totals.state() == first
    totals.start()
    second = totals.state()
    assert first["wall_s"] <= second["wall_s"] < first["wall_s"] + 0.3


@llama_alone
def test_a_second_training_of_a_module_goes_on_counting(model_path: str, tmp_path: Path) -> None:
    module, watch = grpo(model_path), Watch()
    fit(tmp_path, module, 2)
    first = module.totals.state()
    fit(tmp_path / "again", module, 1, callbacks=[watch])
    for name in ("wall_s", "cpu_s", "rollout_tokens", "train_tokens"):
        assert watch.logged[0][f"total/{name}"] > first[name] > 0
