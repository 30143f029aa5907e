"""Rollouts made while the step before is learned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.engines.recorded import ChangedError, Recorder, Replay
from grpo_lightning.rollout.engines.vllm import VLLMEngine
from grpo_lightning.types import Completion
from tests.standin import Running, StandIn, running
from tests.toy import CopyEngine, ToyTask, Watch, fit, grpo, rollouts, same, trainer

LIMIT_S = 60.0


class SlowEngine(CopyEngine):
    """Rollouts that last until the step meanwhile has been learned, which in turn waits for their beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.learned = Event(), Event()

    def wait(self) -> None:
        self.begun.set()
        assert self.learned.wait(LIMIT_S), "the step is not learned while rows are in flight"
        self.learned.clear()


class Together(pl.Callback):
    def __init__(self, engine: SlowEngine) -> None:
        self.engine = engine

    def on_train_batch_start(self, *_: Any) -> None:
        assert self.engine.begun.wait(LIMIT_S), "the next step's rollouts do not begin before this one is learned"
        self.engine.begun.clear()

    def on_train_batch_end(self, *_: Any) -> None:
        self.engine.learned.set()


@pytest.fixture
def path(tiny_model: Callable[[str], str]) -> str:
    return tiny_model("llama")


def ahead(engine: Engine | None = None, **options: Any) -> Any:
    return rollouts(engine=engine or CopyEngine(), rollouts_ahead=1, **options)


def test_a_step_is_learned_while_the_next_ones_rows_are_in_flight(path: str, tmp_path: Path) -> None:
    engine, watch = SlowEngine(), Watch()
    fit(tmp_path, grpo(path), 3, ahead(engine), callbacks=[Together(engine), watch])
    assert engine.log[:8] == [
        "push step-0", "now step-0", "done", "ahead step-0", "done", "push step-1", "ahead step-1", "done",
    ]  # fmt: skip
    assert [batch.recipe.step for batch in watch.batches] == [0, 1, 2]
    ages = [logged.get("policy/rollout_age") for logged in watch.logged]
    assert ages == [None, 1.0, 1.0]
    for logged in watch.logged[1:]:
        assert 0 <= logged["throughput/learner_waits"] < 1
        assert 0 <= logged["throughput/engine_waits"] < 1


def test_rows_are_those_of_the_weights_before_and_are_corrected(path: str, tmp_path: Path) -> None:
    now, later = Watch(), Watch()
    fit(tmp_path, grpo(path), 3, rollouts(), callbacks=[now])
    module = grpo(path)
    fit(tmp_path, module, 3, ahead(), callbacks=[later])
    assert module.correction.chosen == "token"
    tokens = [[[a.completion.token_ids for a in batch.attempts] for batch in watch.batches] for watch in (now, later)]
    keys = [[[a.key for a in batch.attempts] for batch in watch.batches] for watch in (now, later)]
    assert keys[0] == keys[1], "the same prompts with the same seeds"
    assert tokens[0][0] == tokens[1][0]
    assert tokens[0][1] != tokens[1][1]
    assert later.logged[1]["policy/sampler_gap"] > 100 * now.logged[1]["policy/sampler_gap"]
    assert later.logged[1]["policy/sampler_weight"] != 1


def test_validation_uses_the_newest_weights(path: str, tmp_path: Path) -> None:
    engine = CopyEngine()
    options: dict[str, Any] = {"val_check_interval": 2, "limit_val_batches": 1}
    watch = Watch()
    fit(tmp_path, grpo(path), 3, ahead(engine), callbacks=[watch], **options)
    # Step 1 and its rows for step 2 are over before the weights for the validation come.
    assert engine.log[:12] == [
        "push step-0", "now step-0", "done", "ahead step-0", "done",
        "push step-1", "ahead step-1", "done", "push step-2", "now step-2", "done",
        "ahead step-2",
    ]  # fmt: skip
    assert sorted(engine.log[12:]) == ["done", "stop"], "the engine stops, whether rows are in flight or not"
    assert "throughput/learner_waits" not in watch.logged[0]


@pytest.mark.parametrize("refinement", [None, RefinementConfig(budget=1)])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    path: str, tmp_path: Path, refinement: RefinementConfig | None
) -> None:
    whole = fit(tmp_path, grpo(path), 4, ahead(refinement=refinement))
    first = trainer(tmp_path, 2, callbacks=[RunCheckpoint(monitor=None)], enable_checkpointing=True)
    pl.seed_everything(0, verbose=False)
    first.fit(grpo(path), datamodule=ahead(refinement=refinement))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    (state,) = torch.load(checkpoint, weights_only=True)["RolloutDataModule"]["ahead"]["ranks"]
    assert (state["step"], state["weights"]) == (2, 1), "rows of the third step, from the weights of the first update"
    engine, watch = CopyEngine(), Watch()
    resumed = fit(
        tmp_path, grpo(path), 4, ahead(engine, refinement=refinement), ckpt_path=checkpoint, callbacks=[watch]
    )
    assert same(whole, resumed)
    assert engine.log[:2] == ["push step-2", "ahead step-2"], "nothing is sampled again"
    assert [batch.recipe.step for batch in watch.batches] == [2, 3]
    assert [logged["policy/rollout_age"] for logged in watch.logged] == [1.0, 1.0]


@pytest.mark.slow
def test_two_processes_resume_exactly(path: str, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, checkpoint: Path | None = None) -> Path:
        pl.seed_everything(0, verbose=False)
        # Validation has unequal numbers of batches on the two: pushes, which all wait for, come before them.
        lightning = trainer(
            folder, steps, callbacks=[RunCheckpoint(monitor=None)], enable_checkpointing=True, devices=2,
            strategy="ddp_fork", val_check_interval=1, limit_val_batches=1.0,
        )  # fmt: skip
        data = ahead(prompts_per_step=3, val_batch_size=4, task=ToyTask(rows=9))
        lightning.fit(grpo(path), datamodule=data, ckpt_path=checkpoint)
        return folder / "checkpoints" / "last.ckpt"

    whole = torch.load(run(tmp_path / "whole", 3), weights_only=True)
    half = run(tmp_path / "half", 2)
    ranks = torch.load(half, weights_only=True)["RolloutDataModule"]["ahead"]["ranks"]
    assert [(rank["step"], rank["weights"]) for rank in ranks] == [(2, 1), (2, 1)]
    assert ranks[0]["calls"] != ranks[1]["calls"]
    resumed = torch.load(run(tmp_path / "resumed", 3, half), weights_only=True)
    assert same(whole["state_dict"], resumed["state_dict"])
    assert whole["RolloutDataModule"] == resumed["RolloutDataModule"]


def test_rows_in_a_checkpoint_that_no_longer_fit_are_sampled_again(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = trainer(tmp_path, 1)
    half.fit(grpo(path), datamodule=ahead())
    half.save_checkpoint(tmp_path / "half.ckpt")  # after the engine has stopped: it holds no rows
    fit(tmp_path, grpo(path), 2, ahead(), ckpt_path=tmp_path / "half.ckpt")
    saved = trainer(tmp_path, 1, callbacks=[RunCheckpoint(monitor=None)], enable_checkpointing=True)
    saved.fit(grpo(path), datamodule=ahead())
    engine = CopyEngine()
    with caplog.at_level(logging.INFO, "grpo_lightning.rollout.ahead"):
        fit(tmp_path, grpo(path), 2, ahead(engine, group_size=2), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert "are sampled again" in caplog.text
    assert engine.log[:3] == ["push step-1", "now step-1", "done"]
    # Without the option they are not used.
    fit(tmp_path, grpo(path), 2, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_what_breaks_ahead_ends_the_run_at_the_step_that_needs_it(path: str, tmp_path: Path) -> None:
    engine, watch = CopyEngine(), Watch()
    engine.break_at = "step-1"
    callbacks = [watch, RunCheckpoint(monitor=None)]
    with pytest.raises(RunError, match="the server is gone"):
        fit(tmp_path, grpo(path), 4, ahead(engine), callbacks=callbacks, enable_checkpointing=True)
    assert [batch.recipe.step for batch in watch.batches] == [0, 1]
    assert engine.log[-1] == "stop"
    after = Watch()
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    fit(tmp_path, grpo(path), 4, ahead(), callbacks=[after], ckpt_path=checkpoint)
    assert [batch.recipe.step for batch in after.batches] == [2, 3], "no step is lost, or made twice"


def test_what_is_refused(path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"data\.rollouts_ahead: InProcessEngine samples in the trainer's process"):
        rollouts(rollouts_ahead=1)
    with pytest.raises(ConfigError, match=r"data\.rollouts_ahead: must be 0 or 1, not 2"):
        rollouts(rollouts_ahead=2, engine=CopyEngine())
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, grpo(path, sampler_correction="none"), 1, ahead())
    assert "model.sampler_correction: none" in caplog.text
    several = grpo(path, updates_per_rollout=2)
    caplog.clear()
    fit(tmp_path, several, 2, ahead())
    assert several.correction.chosen == "none", "the ratio is taken to the sampler"
    assert "sampler_correction" not in caplog.text


def test_a_recording_is_given_again_in_its_order_and_to_nobody_else(path: str) -> None:
    engine = InProcessEngine()
    policy = Policy(PolicyConfig(path=path))
    engine.start(policy, 64)
    recorder, sampling = Recorder(engine), SamplingParams(max_new_tokens=9)
    asked = [Request([20, 30, row], row) for row in range(6)]

    def following(seen: list[list[int]]) -> OnFinish:
        def follow(numbers: list[int], completions: list[Completion]) -> list[Request]:
            seen.append(list(numbers))
            return [Request([50, number], number) for number in numbers if number == 0]

        return follow

    first: list[list[int]] = []
    second: list[list[int]] = []
    made = recorder.generate(asked, sampling, following(first))
    state = recorder.state()
    assert Replay(state).generate(asked, sampling, following(second)) == made
    assert first == second
    assert len(made) == 7
    for other in (asked[:-1], [*asked[:-1], Request([1], 5)]):
        with pytest.raises(ChangedError):
            Replay(state).generate(other, sampling, following([]))
    with pytest.raises(ChangedError):
        Replay(state).generate(asked, SamplingParams(max_new_tokens=8), following([]))
    with pytest.raises(ChangedError):
        Replay(state).generate(asked, sampling)
    with pytest.raises(ChangedError):
        Replay([]).generate(asked, sampling)


@pytest.fixture
def served(path: str) -> Any:
    with running(StandIn(path)) as server:
        yield server


def test_a_run_from_servers_one_step_ahead(path: str, served: Running, tmp_path: Path) -> None:
    lora: dict[str, Any] = {"lora": LoRAConfig(r=4)}
    ours, theirs = Watch(), Watch()
    fit(tmp_path, grpo(path, **lora), 3, ahead(), callbacks=[ours])
    engine = VLLMEngine([served.url], shared_dir=str(tmp_path / "shared"), restart_wait_s=1.0)
    fit(tmp_path, grpo(path, **lora), 3, ahead(engine), callbacks=[theirs])
    for one, other in zip(ours.batches, theirs.batches, strict=True):
        assert [a.completion.token_ids for a in one.attempts] == [a.completion.token_ids for a in other.attempts]
    assert list((tmp_path / "shared").iterdir()) == []


def test_stopping_the_engine_ends_rows_in_flight(path: str, served: Running, tmp_path: Path) -> None:
    server = served.server
    assert isinstance(server, StandIn)

    class Hold(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            server.holds = True

        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("enough")

    engine = VLLMEngine([served.url], shared_dir=str(tmp_path / "shared"))
    try:
        with pytest.raises(RuntimeError, match="enough"):
            fit(tmp_path, grpo(path, lora=LoRAConfig(r=4)), 2, ahead(engine), callbacks=[Hold()])
    finally:
        server.holds = False
