"""The critic is fitted to stored rollouts before the policy moves: its gradient, what rests, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithms import PPOModule, ValuePretraining
from grpo_lightning.algorithms.update import NonFiniteError
from grpo_lightning.callbacks import RolloutLogger, RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Critic, LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from tests.rollout.test_episodes import Chatty
from tests.tiny import save_tiny_model
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, rollouts, same, sgd

LORA = LoRAConfig(r=4, alpha=8)
PLAIN: dict[str, Any] = {"epochs": 1, "completions_per_step": 1000}


@pytest.fixture(scope="module")
def run(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Watch]:
    """A run that stored the rollouts of two steps, without learning from them."""
    folder, watch = tmp_path_factory.mktemp("stored"), Watch()
    module = grpo(tiny_model("llama"), optimizer=partial(torch.optim.SGD, lr=0.0))
    fit(folder, module, 2, rollouts(), callbacks=[watch, RolloutLogger()])
    return str(folder), watch


class AtStart(pl.Callback):
    """Keeps the weights that the first step begins with, and how far the run has come."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if not hasattr(self, "weights"):
            self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
            self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            self.global_step = trainer.global_step


def ppo(path: str, run_dir: str, pretraining: dict[str, Any] | None = None, **options: Any) -> PPOModule:
    given = ValuePretraining(run_dir, **PLAIN | (pretraining or {}))
    defaults: dict[str, Any] = {
        "verifiers": [LetterVerifier()], "beta": 0.0, "optimizer": sgd, "max_grad_norm": None,
        "value_pretraining": given, "value_coef": 0.5,
    }  # fmt: skip
    return PPOModule(policy=PolicyConfig(path, lora=options.pop("lora", None)), **defaults | options)


def started(folder: Path, module: PPOModule, **options: Any) -> AtStart:
    """The weights after the pretraining: one step more is made, and not looked at."""
    start = AtStart()
    fit(folder, module, 1, callbacks=[start], **options)
    return start


def written_out(path: str, watch: Watch, gamma: float, critic: Critic) -> Tensor:
    """The loss of all stored completions, row by row: ``0.5 / 2 (V_t - gamma^(T - t) r)^2``, the mean over tokens."""
    total, count = torch.zeros(()), 0
    with critic.trunk() as lm:
        for attempt in (attempt for batch in watch.batches for attempt in batch.attempts):
            said = attempt.completion.token_ids
            hidden = lm.get_decoder()(input_ids=torch.tensor([attempt.conversation + said])).last_hidden_state[0]
            values = critic.head(hidden[len(attempt.conversation) - 1 : -1])
            returns = attempt.reward * gamma ** torch.arange(len(said) - 1, -1, -1)
            total, count = total + 0.5 * 0.5 * (values - returns).square().sum(), count + len(said)
    return total / count


@pytest.mark.parametrize("budget", [100_000, 1])
def test_the_gradient_is_that_of_the_formula_for_any_split(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch], budget: int
) -> None:
    path, (folder, watch) = tiny_model("llama"), run
    module = ppo(path, folder, {"epochs": 2}, critic="separate", gamma=0.9, lam=0.3, max_tokens_per_microbatch=budget)
    start = started(tmp_path, module)
    critic = Critic(Policy(PolicyConfig(path)), "separate")
    for _ in range(2):
        critic.zero_grad()
        written_out(path, watch, 0.9, critic).backward()
        with torch.no_grad():
            for parameter in critic.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
    moved = 0.0
    for name, parameter in critic.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(start.weights[f"critic.{name}"], parameter, atol=2e-5, rtol=1e-3)
            moved = max(moved, float(parameter.grad.abs().max()))
    assert moved > 1e-2
    assert start.global_step == 0


def test_the_first_step_of_a_head_by_hand(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch], caplog: pytest.LogCaptureFixture
) -> None:
    """All values are 0, so the bias moves by half of the mean return; the policy's trunk rests, though it is shared."""
    path, (folder, watch) = tiny_model("llama"), run
    caplog.set_level("INFO")
    start = started(tmp_path, ppo(path, folder, {"last_step": 0}))
    returns = [a.reward for a in watch.batches[0].attempts for _ in a.completion.token_ids]
    assert start.weights["critic.head.bias"].item() == pytest.approx(0.5 * sum(returns) / len(returns), rel=1e-4)
    for name, parameter in Policy(PolicyConfig(path)).named_parameters():
        assert torch.equal(start.weights[f"policy.{name}"], parameter)
    mean_square = sum(value**2 for value in returns) / len(returns)
    assert f"explained variance 0.000, root mean square error {mean_square**0.5:.3f}, over 12" in caplog.text
    assert "nats per token from the policy" in caplog.text


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_the_critic_comes_to_predict_and_the_policy_rests(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch], critic: Any, caplog: Any
) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-6)

    caplog.set_level("INFO")
    options: dict[str, Any] = {"critic": critic, "lora": LORA if critic == "adapter" else None, "optimizer": adam}
    module = ppo(
        tiny_model("llama"), run[0], {"epochs": 4, "completions_per_step": 6}, **options, lr_scheduler=schedule
    )
    start = started(tmp_path, module)
    errors = [float(r.getMessage().split("error ")[1].split(",")[0]) for r in caplog.records if "epoch" in r.msg]
    assert len(errors) == 4
    assert errors[-1] < 0.9 * errors[0], "though the schedule begins at a millionth"
    assert start.rates == pytest.approx([1e-8, 1e-8]), "the schedule has not moved"
    policy = {id(p) for p in module.policy.trainable_parameters()}
    untouched = started(tmp_path, ppo(tiny_model("llama"), run[0], **options | {"value_pretraining": None}))
    for name, parameter in module.named_parameters():
        if id(parameter) in policy:
            assert torch.equal(start.weights[name], untouched.weights[name])
    assert not torch.equal(start.weights["critic.head.weight"], untouched.weights["critic.head.weight"])


def test_turns_are_fitted_to_their_returns_to_go(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    data = partial(rollouts, environment=Chatty(), sampling=SamplingParams(max_new_tokens=20))
    watch = Watch()
    at_rest = grpo(tiny_model("llama"), verifiers=[], optimizer=partial(torch.optim.SGD, lr=0.0))
    fit(tmp_path / "run", at_rest, 1, data(), callbacks=[watch, RolloutLogger()])
    turns: dict[str, Any] = {"episode_credit": "return_to_go", "episode_discount": 0.5, "verifiers": []}
    biases = []
    for options in ({"turn_lam": 0.3}, {}, {"turn_lam": 0.3, "bootstrap_truncated": True}):
        start = AtStart()
        module = ppo(tiny_model("llama"), str(tmp_path / "run"), **turns, **options)
        fit(tmp_path, module, 1, data(), callbacks=[start])
        biases.append(start.weights["critic.head.bias"].item())
    batch = watch.batches[0]
    to_go = [attempt.reward for attempt in batch.attempts]
    for row in reversed(range(batch.first, len(batch))):
        to_go[batch.attempts[row].parent or 0] += 0.5 * to_go[row]
    cut_off = {root for root, cut in zip(batch.root_rows, batch.truncated_N.tolist(), strict=True) if cut}
    known = [row not in cut_off for row in batch.root_rows]
    for bias, chosen in zip(biases, ([True] * len(batch), [True] * len(batch), known), strict=True):
        lengths = [len(a.completion.token_ids) * c for a, c in zip(batch.attempts, chosen, strict=True)]
        wanted = sum(value * length for value, length in zip(to_go, lengths, strict=True)) / sum(lengths)
        assert bias == pytest.approx(0.5 * wanted, rel=1e-4)
    assert 0 < sum(known) < len(batch)


def test_a_resumed_run_does_not_fit_again(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch]
) -> None:
    options: dict[str, Any] = {"optimizer": adam, "critic": "separate"}
    whole = fit(tmp_path / "whole", ppo(tiny_model("llama"), run[0], **options), 3)
    part = {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}
    fit(tmp_path / "part", ppo(tiny_model("llama"), run[0], **options), 2, **part)
    last = tmp_path / "part/checkpoints/last.ckpt"
    assert same(whole, fit(tmp_path / "part", ppo(tiny_model("llama"), run[0], **options), 3, ckpt_path=last))


def test_gradients_that_are_not_finite_end_the_run(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch]
) -> None:
    module = ppo(tiny_model("llama"), run[0], {"completions_per_step": 6}, value_coef=1e39)
    with pytest.raises(NonFiniteError, match="two consecutive training steps"):
        started(tmp_path, module)


def test_rollouts_of_another_policy_are_reported(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch], caplog: pytest.LogCaptureFixture
) -> None:
    other = save_tiny_model(tmp_path / "other", "llama", seed=1)
    started(tmp_path, ppo(other, run[0], beta=0.1))
    assert "are of another policy: their log-probs differ by" in caplog.text


def test_two_processes_fit_what_one_does(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch]
) -> None:
    found = []
    for devices in (1, 2):
        parallel = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        # Two optimizer steps, the last with one row, which one of the processes does not have.
        module = ppo(tiny_model("llama"), run[0], {"completions_per_step": 23}, critic="separate")
        folder = tmp_path / str(devices)
        fit(
            folder,
            module,
            1,
            rollouts(prompts_per_step=4),
            callbacks=[RunCheckpoint()],
            enable_checkpointing=True,
            **parallel,
        )
        found.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("pretraining", "options", "data", "text"),
    [
        ({"epochs": 0}, {}, {}, "model.value_pretraining.epochs: must be at least 1, not 0"),
        ({"completions_per_step": 0}, {}, {}, "model.value_pretraining.completions_per_step: must be at least 1"),
        ({}, {}, {"refinement": RefinementConfig()}, "model.value_pretraining: has no credit for data.refinement"),
        ({"rollouts": "nowhere"}, {}, {}, "model.value_pretraining.rollouts: nowhere has no logged"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_loads(
    tiny_model: Callable[[str], str], tmp_path: Path, run: tuple[str, Watch], monkeypatch: pytest.MonkeyPatch,
    pretraining: dict[str, Any], options: dict[str, Any], data: dict[str, Any], text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(PPOModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    folder = pretraining.pop("rollouts", run[0])
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, ppo(tiny_model("llama"), folder, pretraining, **options), 1, rollouts(**data))
