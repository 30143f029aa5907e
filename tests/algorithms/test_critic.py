"""The passes that a step of PPO saves: each gives the weights and the curves of the plain way, and is really saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithms import PPOModule
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import Experience
from grpo_lightning.verifiers import Verdict, Verifier
from tests.toy import LetterVerifier, Watch, adam, fit, rollouts, same, sgd

LORA = LoRAConfig(r=4, alpha=8)
CRITICS: dict[str, dict[str, Any]] = {
    "shared": {},
    "separate": {"critic": "separate"},
    "adapter": {"critic": "adapter", "lora": LORA, "bootstrap_truncated": True},
    "own lambdas": {"critic": "separate", "value_lam": 1.0, "lam_alpha": 0.2},
    "lambda by length": {"value_lam": 0.9, "lam_alpha": 0.2},
    "warm-up": {"critic_warmup_steps": 1},
}
each_critic = pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS.keys())
NO_LR = 1e-46
"""So small that float32 weights stay bit for bit: the values stay 0."""


class Plain(PPOModule):
    """Makes every pass, over every row."""

    _one_pass = False

    def rows_to_learn(self, experience: Experience) -> Tensor:
        return experience.learned_N


class Easy(Verifier):
    """Rewards every completion of the prompts with these letters, and none of the others."""

    def __init__(self, letters: str) -> None:
        super().__init__(accept_truncated=True)
        self.letters = letters

    def verify(self, sample: Any) -> Verdict:
        return Verdict(correct=self.letters in sample.prompt[-1]["content"], format_valid=False)


class Calls(pl.Callback):
    """Counts the passes of the policy's model by step: those with gradient, and those without, of a phase."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.steps: list[dict[tuple[str, bool], int]] = [{}]
        self.phase = ""
        pl_module.phases.listeners.append(self)
        pl_module.policy.lm.get_decoder().register_forward_pre_hook(self._count)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append({})

    def phase_started(self, name: str) -> None:
        self.phase = name

    def phase_ended(self, name: str) -> None:
        self.phase = ""

    def _count(self, *_: Any) -> None:
        if self.phase in ("value", "update"):
            key = self.phase, torch.is_grad_enabled()
            self.steps[-1][key] = self.steps[-1].get(key, 0) + 1


def ppo(kind: type[PPOModule], path: str, **options: Any) -> PPOModule:
    policy = PolicyConfig(path, lora=options.pop("lora", None), without=options.pop("without", []))
    defaults: dict[str, Any] = {"verifiers": [LetterVerifier()], "beta": 0.0, "optimizer": adam}
    return kind(policy=policy, **defaults | options)


@each_critic
def test_a_step_equals_one_that_makes_every_pass(model_path: str, tmp_path: Path, critic: dict[str, Any]) -> None:
    options = {**critic, "beta": 0.1, "value_coef": 1.0, "updates_per_rollout": 2, "optimizer": sgd}
    short, long = Watch(), Watch()
    # Some prompts run once, and there are several micro-batches.
    found = fit(tmp_path, ppo(PPOModule, model_path, **options, max_tokens_per_microbatch=300), 2, callbacks=[short])
    plain = fit(tmp_path, ppo(Plain, model_path, **options, without=["shared_prompts"]), 2, callbacks=[long])
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-3)
    for name, value in long.logged[0].items():
        if not name.startswith(("time/", "throughput/", "total/wall_s", "total/cpu_s")):
            assert short.logged[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("critic", "value", "update"),
    [("shared", {True: 1}, {}), ("adapter", {True: 1}, {True: 1}), ("warm-up", {False: 1}, {})],
)
def test_a_step_makes_no_pass_twice(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: str, value: dict[bool, int], update: dict[bool, int]
) -> None:
    calls = Calls()
    module = ppo(PPOModule, tiny_model("llama"), **CRITICS[critic], without=["shared_prompts"])
    fit(tmp_path, module, 1, rollouts(prompts_per_step=1, group_size=2), callbacks=[calls])
    wanted = {("value", grad): count for grad, count in value.items()}
    assert calls.steps[0] == wanted | {("update", grad): count for grad, count in update.items()}


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_rows_that_teach_nothing_are_skipped_and_nothing_else_changes(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: str
) -> None:
    """The optimizer has momentum: its step moves the policy on even if there is nothing to learn."""
    learned: list[bool] = []

    class Seen(PPOModule):
        def rows_to_learn(self, experience: Experience) -> Tensor:
            rows_N = super().rows_to_learn(experience)
            learned.append(bool(rows_N.any()))
            return rows_N

    class NoSkip(PPOModule):
        def rows_to_learn(self, experience: Experience) -> Tensor:
            return experience.learned_N

    options = {
        **CRITICS[critic], "bootstrap_truncated": False, "verifiers": [Easy("b1")], "value_lr": NO_LR,
        "whiten_advantages": False, "updates_per_rollout": 2,
    }  # fmt: skip
    data = {"prompts_per_step": 1, "group_size": 2}
    found, plain = (
        fit(tmp_path, ppo(kind, tiny_model("llama"), **options), 12, rollouts(**data)) for kind in (Seen, NoSkip)
    )
    assert set(learned[::2]) == {True, False}, "in the first optimizer step of a rollout"
    assert all(learned[1::2]), "in the second, the critic may learn"
    assert same(found, plain)


def test_the_critic_learns_where_the_policy_cannot(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    """All rewards are 1 and all values 0: whitened, the advantages are 0, and the values are off by 1."""
    path = tiny_model("llama")
    module = ppo(PPOModule, path, critic="separate", verifiers=[Easy("train")], lam=1.0, optimizer=sgd)
    watch = Watch()
    after = fit(tmp_path, module, 1, callbacks=[watch])
    before = {f"policy.{name}": p for name, p in Policy(PolicyConfig(path)).named_parameters()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert watch.logged[0]["value/loss"] == pytest.approx(0.5)
    assert after["critic.head.bias"].item() > 0.01
