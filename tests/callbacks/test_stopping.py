"""StopWhen and AdaptiveKL: callbacks that steer a run by its metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.algorithms import DistillationModule, PPOModule, SFTModule
from grpo_lightning.callbacks import AdaptiveKL, PolicyExport, ReferenceSync, RunCheckpoint, StopWhen
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import RunCallback, StepEnd
from tests.algorithms.test_grpo import Constant
from tests.toy import LetterVerifier, Watch, fit, grpo, llama_alone, same

# -- StopWhen ---------------------------------------------------------------------------------------------------------


def stopped_after(tmp_path: Path, module: Any, stop: StopWhen, **options: Any) -> int:
    watch = Watch()
    fit(tmp_path, module, 6, callbacks=[stop, watch, PolicyExport()], **options)
    assert (tmp_path / "policy").is_dir(), "the run ended as usual"
    return len(watch.logged)


@pytest.mark.parametrize(("steps", "lasted"), [(2, 2), (4, 4), (7, 6), (None, 6)])
def test_without_a_signal(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int | None, lasted: int
) -> None:
    silent = grpo(tiny_model("llama"), verifiers=[Constant("never")])
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        assert stopped_after(tmp_path, silent, StopWhen(no_signal_steps=steps, reward=9.0)) == lasted
    said = f"stopping: no group had a signal to learn from in {steps} steps running (StopWhen.no_signal_steps)"
    assert (said in caplog.text) is (lasted < 6)


def test_a_signal_is_no_reason_to_stop(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    assert stopped_after(tmp_path, grpo(tiny_model("llama")), StopWhen(no_signal_steps=2, reward=9.0)) == 6


@pytest.mark.parametrize(("max_kl", "patience", "lasted"), [(1e-9, 1, 2), (1e-9, 3, 4), (100.0, 1, 6)])
def test_on_the_kl(tiny_model: Callable[[str], str], tmp_path: Path, max_kl: float, patience: int, lasted: int) -> None:
    # The KL of the first step is 0: the policy is its own reference there.
    module = grpo(tiny_model("llama"), beta=0.01)
    assert stopped_after(tmp_path, module, StopWhen(max_kl=max_kl, patience=patience)) == lasted


@pytest.mark.parametrize(("reward", "patience", "lasted"), [(0.0, 2, 2), (0.0, 5, 5), (2.0, 1, 6)])
def test_on_the_reward(
    tiny_model: Callable[[str], str], tmp_path: Path, reward: float, patience: int, lasted: int
) -> None:
    assert stopped_after(tmp_path, grpo(tiny_model("llama")), StopWhen(reward=reward, patience=patience)) == lasted


def test_steps_are_counted_on_over_a_resume(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    def run(steps: int, **options: Any) -> int:
        watch = Watch()
        callbacks = [StopWhen(no_signal_steps=4), watch, RunCheckpoint()]
        module = grpo(tiny_model("llama"), verifiers=[Constant("never")])
        fit(tmp_path, module, steps, callbacks=callbacks, enable_checkpointing=True, **options)
        return len(watch.logged)

    assert run(3) == 3
    assert run(9, ckpt_path=tmp_path / "checkpoints/last.ckpt") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"no_signal_steps": None}, "without one it never stops"),
        ({"no_signal_steps": 0}, r"StopWhen\.no_signal_steps"),
        ({"patience": 0}, r"StopWhen\.patience"),
    ],
)
def test_what_never_stops_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StopWhen(**options)


def ppo(path: str, beta: float = 0.1) -> PPOModule:
    return PPOModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], beta=beta)


def distillation(path: str) -> DistillationModule:
    """Keeps a reference, and has no KL to it; logs rewards, and learns from none."""
    return DistillationModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], teacher="reference")


@pytest.mark.parametrize(
    ("algorithm", "condition", "said"),
    [
        ("ppo", {"no_signal_steps": 1}, "no_signal_steps: this run does not learn from groups"),
        ("sft", {"no_signal_steps": 1}, "no_signal_steps: this run does not learn from groups"),
        ("distillation", {"no_signal_steps": 1}, "no_signal_steps: this run does not learn from groups"),
        ("distillation", {"max_kl": 1.0}, "max_kl: this run has no KL"),
        ("grpo", {"max_kl": 1.0}, "max_kl: this run has no KL to a reference, .*: set model.beta above 0"),
        ("sft", {"max_kl": 1.0}, "max_kl: this run has no KL"),
        ("sft", {"reward": 1.0}, "reward: this run learns from demonstrations"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused_before_the_model_is_loaded(
    tiny_model: Callable[[str], str], tmp_path: Path, algorithm: str, condition: dict[str, Any], said: str
) -> None:
    path = tiny_model("llama")
    sft = SFTModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()])
    modules = {"ppo": ppo(path), "sft": sft, "grpo": grpo(path), "distillation": distillation(path)}
    module: Any = modules[algorithm]
    with pytest.raises(ConfigError, match=rf"StopWhen\.{said}"):
        fit(tmp_path, module, 1, callbacks=[StopWhen(**condition)])
    assert not hasattr(module, "policy")


def test_a_limit_of_the_kl_is_all_that_ppo_needs_to_give(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    assert stopped_after(tmp_path, ppo(tiny_model("llama")), StopWhen(max_kl=-1.0, patience=2)) == 2


class Breaks(LetterVerifier):
    """Judges two steps; from then on nothing can be learned, and a step has no KL."""

    broken = False

    def verify(self, sample: Any) -> Any:
        if self.broken:
            raise OSError("the checker is gone")
        return super().verify(sample)


class Ends(RunCallback):
    """Keeps what each step measured."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self.metrics.append(end.metrics)


class BreakAfter(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            pl_module.verifiers["Breaks"].broken = True


@pytest.mark.parametrize(
    "steers",
    [StopWhen(max_kl=1e-9, patience=2), AdaptiveKL(target=1e-6), ReferenceSync(every_n_steps=3, min_kl=1e-9)],
    ids=lambda callback: type(callback).__name__,
)
def test_a_step_without_a_kl_steers_nothing_by_the_one_before(
    tiny_model: Callable[[str], str], tmp_path: Path, steers: pl.Callback
) -> None:
    watch, ends = Watch(), Ends()
    module = grpo(tiny_model("llama"), beta=0.05, verifiers=[Breaks()], max_error_rate=1.0)
    fit(tmp_path, module, 5, callbacks=[steers, watch, ends, BreakAfter()])
    assert watch.logged[1]["policy/kl"] == watch.logged[4]["policy/kl"] > 1e-9, "Lightning keeps the last one"
    assert len(watch.logged) == 5
    assert "policy/kl" in ends.metrics[1]
    assert "policy/kl" not in ends.metrics[4]
    assert ends.metrics[4]["reward/errors"] == 1
    if isinstance(steers, AdaptiveKL):
        assert watch.logged[1]["policy/beta"] != watch.logged[2]["policy/beta"]
        assert module.beta == pytest.approx(watch.logged[2]["policy/beta"], rel=1e-6)
    if isinstance(steers, ReferenceSync):
        assert watch.logged[4]["reference/moves"] == 0


# -- AdaptiveKL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "gain"), [(1e-6, 0.1), (1e-6, 0.5), (10.0, 0.1), (0.02, 0.1)])
def test_beta_follows_the_formula(tiny_model: Callable[[str], str], tmp_path: Path, target: float, gain: float) -> None:
    watch, module = Watch(), grpo(tiny_model("llama"), beta=0.05)
    fit(tmp_path, module, 4, callbacks=[AdaptiveKL(target=target, gain=gain), watch])
    beta = 0.05
    for logged in watch.logged:
        assert logged["policy/beta"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + gain * max(-0.2, min(0.2, logged["policy/kl"] / target - 1))
    assert module.beta == pytest.approx(beta, rel=1e-6)
    # By hand: the first KL is 0, so beta falls by a fifth of the gain; below a target that every KL passes it rises.
    assert watch.logged[1]["policy/beta"] == pytest.approx(0.05 * (1 - 0.2 * gain))
    if target != 0.02:
        assert (watch.logged[2]["policy/beta"] > watch.logged[1]["policy/beta"]) is (target == 1e-6)


def test_the_weight_matters_to_the_update(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    plain = fit(tmp_path, grpo(tiny_model("llama"), beta=0.05), 4)
    adapted = fit(tmp_path, grpo(tiny_model("llama"), beta=0.05), 4, callbacks=[AdaptiveKL(target=1e-6, gain=1.0)])
    assert not same(plain, adapted)


@llama_alone
def test_a_resumed_run_goes_on_with_the_moved_weight(model_path: str, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, **options: Any) -> tuple[dict[str, torch.Tensor], float]:
        module = grpo(model_path, beta=0.5)
        callbacks = [AdaptiveKL(target=1e-6, gain=1.0), RunCheckpoint()]
        weights = fit(folder, module, steps, callbacks=callbacks, enable_checkpointing=True, **options)
        return weights, module.beta

    whole, beta = run(tmp_path / "whole", 5)
    run(tmp_path / "part", 3)
    resumed, resumed_beta = run(tmp_path / "part", 5, ckpt_path=tmp_path / "part/checkpoints/last.ckpt")
    assert beta == resumed_beta != 0.5
    assert same(whole, resumed)


def test_a_run_without_a_kl_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    sft = SFTModule(policy=PolicyConfig(path=tiny_model("llama")), verifiers=[LetterVerifier()])
    for module in (grpo(tiny_model("llama"), beta=0.0), sft):
        with pytest.raises(ConfigError, match=r"AdaptiveKL.*set model.beta above 0"):
            fit(tmp_path, module, 1, callbacks=[AdaptiveKL()])


@pytest.mark.parametrize("options", [{"target": 0.0}, {"gain": 0.0}, {"gain": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"AdaptiveKL.{next(iter(options))}"):
        AdaptiveKL(**options)


def test_ppo_holds_its_kl_itself(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AdaptiveKL: PPO takes its KL out of the rewards: set model.adaptive_kl"):
        fit(tmp_path, ppo(tiny_model("llama")), 1, callbacks=[AdaptiveKL()])
