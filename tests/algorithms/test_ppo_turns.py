"""PPO on conversations as one episode: its targets against sums written out, its gradient, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.algorithms import PPOModule
from grpo_lightning.algorithms.episodes import ValuedExperience
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.rollout import SamplingParams
from tests.functional.test_gae import by_turns
from tests.rollout.test_episodes import CAP, Chatty, by_episode
from tests.toy import LetterVerifier, Watch, fit, rollouts, sgd

TURNS: dict[str, Any] = {"turn_lam": 0.5, "episode_credit": "return_to_go", "episode_discount": 0.7, "lam": 0.6}


class Keeps(PPOModule):
    """Keeps the targets of every step."""

    def targets(self, *args: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), super().targets(*args)]
        return self.seen[-1]


def ppo(path: str, **options: Any) -> Keeps:
    defaults: dict[str, Any] = {
        "verifiers": [], "beta": 0.0, "optimizer": sgd, "max_grad_norm": None, "value_coef": 1.0, "gamma": 0.9,
        "whiten_advantages": False, "value_epsilon": None, "max_error_rate": 1.0,
    }  # fmt: skip
    return Keeps(policy=PolicyConfig(path, lora=options.pop("lora", None)), **defaults | options)


def run(folder: Path, module: Keeps, breaks: str = "") -> tuple[dict[str, torch.Tensor], list[ValuedExperience]]:
    """Two steps: in the second, the values are not 0."""
    data = rollouts(environment=Chatty(breaks), sampling=SamplingParams(max_new_tokens=CAP), prompts_per_step=2)
    weights = fit(folder, module, 2, data, callbacks=[Watch()])
    return weights, module.seen


@pytest.mark.parametrize("options", [{}, {"value_lam": 0.9}, {"bootstrap_truncated": True, "critic": "separate"}])
def test_targets_are_those_of_turns_as_one_episode(
    tiny_model: Callable[[str], str], tmp_path: Path, options: dict[str, Any]
) -> None:
    module = ppo(tiny_model("llama"), **TURNS | options)
    _, (_, batch) = run(tmp_path, module, "step")
    assert batch.values_NT.abs().max() > 0.01
    bootstrapped, turns = [], set()
    for rows in by_episode(batch):
        if not batch.counted_N[rows[0]]:
            assert not batch.counted_N[rows].any()
            assert not batch.advantages[rows].any()
            continue
        lengths = [len(batch.attempts[row].completion.token_ids) for row in rows]
        values = [batch.values_NT[row, :length].tolist() for row, length in zip(rows, lengths, strict=True)]
        rewards = [
            [0.0] * (length - 1) + [batch.attempts[row].reward] for row, length in zip(rows, lengths, strict=True)
        ]
        end = 0.0
        if options.get("bootstrap_truncated") and batch.truncated_N[rows[-1]]:
            rewards[-1][-1] = 0.0
            # The value after the last token is in no row: the last advantage tells it.
            end = float(batch.advantages[rows[-1], lengths[-1] - 1] + values[-1][-1]) / 0.9
            bootstrapped.append(end)
        lams = (0.6, 0.5), (options.get("value_lam", 0.6), options.get("value_lam", 0.5))
        policy, critic = (by_turns(rewards, values, end, (0.9, lam, 0.7, turn_lam)) for lam, turn_lam in lams)
        for number, row in enumerate(rows):
            assert batch.advantages[row, : lengths[number]].tolist() == pytest.approx(policy[number], abs=1e-5)
            errors = batch.returns_NT[row] - batch.values_NT[row]
            assert errors[: lengths[number]].tolist() == pytest.approx(critic[number], abs=1e-5)
        turns.add(len(rows))
    assert max(turns) > 1
    assert any(end != 0 for end in bootstrapped) == options.get("bootstrap_truncated", False)
    assert not batch.counted_N.all(), "some episodes broke"


def test_lambdas_of_1_are_the_plain_return_to_go(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"episode_credit": "return_to_go", "episode_discount": 0.7, "lam": 1.0, "gamma": 1.0}
    # The critic learns in the pass that gives the values in one of them, and after it in the other.
    plain, rows = run(tmp_path, ppo(tiny_model("llama"), critic="separate", **options))
    found, chained = run(tmp_path, ppo(tiny_model("llama"), critic="separate", turn_lam=1.0, **options))
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(chained[1].returns_NT, rows[1].returns_NT, atol=1e-4, rtol=1e-3)
    less, _ = run(tmp_path, ppo(tiny_model("llama"), critic="separate", turn_lam=0.0, **options))
    assert any((less[name] - tensor).abs().max() > 1e-3 for name, tensor in plain.items())


@pytest.mark.parametrize(
    "critic", [{"critic": "shared"}, {"critic": "adapter", "lora": LoRAConfig(r=4, alpha=8)}], ids=["shared", "adapter"]
)
def test_the_gradient_does_not_depend_on_the_split(
    tiny_model: Callable[[str], str], tmp_path: Path, critic: dict[str, Any]
) -> None:
    """Turns of an episode are in different micro-batches, though each needs the values of the next one."""
    whole, _ = run(tmp_path, ppo(tiny_model("lfm2"), **TURNS, **critic, max_tokens_per_microbatch=100_000))
    cut, _ = run(tmp_path, ppo(tiny_model("lfm2"), **TURNS, **critic, max_tokens_per_microbatch=1))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        ({"turn_lam": 1.5}, True, "model.turn_lam: must be from 0 to 1, or null"),
        ({"episode_credit": "return"}, True, "model.episode_credit: turn_lam estimates the return to go"),
        ({"mask_truncated": True}, True, "model.mask_truncated: leaves out last turns"),
        ({}, False, "model.turn_lam: there are turns only with data.environment"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, options: dict[str, Any], environment: bool, text: str
) -> None:
    data = rollouts(environment=Chatty() if environment else None)
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, ppo(tiny_model("llama"), **TURNS | {"verifiers": [LetterVerifier()]} | options), 1, data)
