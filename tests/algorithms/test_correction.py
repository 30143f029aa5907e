"""The correction for the gap to the sampler: one step against its formula, and what chooses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_lightning.algorithms import GRPOModule, PPOModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import Experience, SamplingParams
from grpo_lightning.rollout.engines.base import OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.types import Completion
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, rollouts, same, sgd, trainer

NO_CLIP: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd}
HEAT = 1.1


class HotEngine(InProcessEngine):
    """Samples at another temperature than that of the loss, and says so in its log-probs: a gap that is known."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        return super().generate([request._replace(temperature=HEAT) for request in requests], sampling, on_finish)


def hot(**options: Any) -> Any:
    return rollouts(engine=HotEngine(), **options)


@pytest.fixture
def path(tiny_model: Callable[[str], str]) -> str:
    return tiny_model("llama")


def step(folder: Path, path: str, data: Any, **options: Any) -> tuple[dict[str, Tensor], Experience, dict[str, float]]:
    """Minus the change of the weights in one step of SGD with learning rate 1, with the step's batch and log."""
    watch = Watch()
    after = fit(folder, grpo(path, **NO_CLIP | options), 1, data, callbacks=[watch])
    before = {f"policy.model.{name}": p for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    return {name: before[name] - tensor for name, tensor in after.items()}, watch.batches[0], watch.logged[0]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("mode", "cap"), [("token", 1.05), ("sequence-mask", 1.2)])
def test_the_gradient_is_that_of_the_weighted_loss(path: str, tmp_path: Path, mode: Any, cap: float) -> None:
    found, batch, logged = step(tmp_path, path, hot(), sampler_correction=mode, sampler_cap=cap)
    model = AutoModelForCausalLM.from_pretrained(path)
    loss, weights, cut, gaps = torch.zeros(()), list[float](), 0, list[float]()
    for row, rollout in enumerate(batch.attempts):
        group = torch.tensor([attempt.reward for attempt in batch.attempts[row // 4 * 4 : row // 4 * 4 + 4]])
        advantage = (rollout.reward - group.mean()) / (group.std() + 1e-4)
        prompt = int(batch.tokens.prompt_lengths_N[row])
        ids = torch.tensor([batch.tokens.ids_NL[row, :prompt].tolist() + rollout.completion.token_ids])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, ids[0, prompt:, None])[:, 0]
        drawn = (logits / HEAT).log_softmax(-1).gather(-1, ids[0, prompt:, None])[:, 0]
        ratios = [(p.exp() / q.exp()).item() for p, q in zip(chosen, drawn, strict=True)]
        product = torch.tensor(ratios, dtype=torch.float64).prod().item()
        of_row = [min(ratio, cap) for ratio in ratios]
        if mode == "sequence-mask":
            of_row = [product if product <= cap else 0.0] * len(ratios)
        if advantage != 0:  # rows without a signal are not passed
            weights += of_row
            cut += sum(r > cap for r in ratios) if mode == "token" else len(ratios) * (product > cap)
            gaps += (chosen - drawn).abs().tolist()
        loss = loss - advantage * (torch.tensor(of_row) * chosen).mean() / 12
    loss.backward()
    close(found, {f"policy.model.{name}": p.grad for name, p in model.named_parameters()})
    assert 0 < cut < len(weights), "the cap acts on some, or half of this is not tested"
    assert logged["policy/sampler_weight"] == pytest.approx(sum(weights) / len(weights), rel=1e-4)
    assert logged["policy/sampler_cut"] == pytest.approx(cut / len(weights))
    assert logged["policy/sampler_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-3)


@pytest.mark.parametrize("mode", ["token", "sequence-mask"])
def test_the_gradient_does_not_depend_on_the_split(path: str, tmp_path: Path, mode: Any) -> None:
    options: dict[str, Any] = {"sampler_correction": mode, "sampler_cap": 1.1, "beta": 0.1}
    whole, _, logged = step(tmp_path, path, hot(), max_tokens_per_microbatch=100_000, **options)
    assert 0 < logged["policy/sampler_cut"] < 1
    for budget in (1, 90):
        close(whole, step(tmp_path, path, hot(), max_tokens_per_microbatch=budget, **options)[0])


def test_auto_is_none_where_sampling_and_training_agree(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    plain = fit(tmp_path, grpo(path, sampler_correction="none"), 2)
    with caplog.at_level(logging.INFO, "grpo_lightning.algorithms.correction"):
        auto = fit(tmp_path, grpo(path), 2, callbacks=[watch])
    assert same(plain, auto)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("correction")]
    assert [line.split(": ", 1)[1] for line in said] == ["sampler_correction: auto is none (token above 0.001)"]
    assert "policy/sampler_weight" not in watch.logged[-1]
    assert not same(plain, fit(tmp_path, grpo(path, sampler_correction="token"), 2)), "weights of 1 +- 1e-6"


def test_auto_is_token_where_they_differ_and_stays_so_after_a_resume(path: str, tmp_path: Path) -> None:
    token = fit(tmp_path, grpo(path, sampler_correction="token"), 2, hot())
    assert not same(token, fit(tmp_path, grpo(path, sampler_correction="none"), 2, hot()))
    assert same(token, fit(tmp_path, grpo(path), 2, hot()))
    half = trainer(tmp_path, 1)
    half.fit(grpo(path), datamodule=hot())
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert same(token, fit(tmp_path, grpo(path), 2, hot(), ckpt_path=tmp_path / "half.ckpt"))
    # The next step would measure no gap.
    module = grpo(path)
    fit(tmp_path, module, 2, ckpt_path=tmp_path / "half.ckpt")
    assert module.correction.chosen == "token"
    # What the config says comes first, and a checkpoint from before there was a choice leaves it open.
    named = grpo(path, sampler_correction="sequence-mask")
    fit(tmp_path, named, 2, ckpt_path=tmp_path / "half.ckpt")
    assert named.correction.chosen == "sequence-mask"
    old = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del old["sampler_correction"]
    torch.save(old, tmp_path / "old.ckpt")
    fit(tmp_path, module := grpo(path), 2, ckpt_path=tmp_path / "old.ckpt")
    assert module.correction.chosen == "none"


def test_several_steps_correct_once(path: str, tmp_path: Path) -> None:
    assert grpo(path, updates_per_rollout=2).correction.chosen == "none"
    with pytest.raises(ConfigError, match=r"model\.sampler_correction: token would correct twice.*to recompute"):
        grpo(path, minibatches_per_update=2, sampler_correction="token")
    several: dict[str, Any] = {"updates_per_rollout": 2, "old_logprobs": "recompute"}
    watch = Watch()
    corrected = fit(tmp_path, grpo(path, sampler_correction="token", **several), 1, hot(), callbacks=[watch])
    assert not same(corrected, fit(tmp_path, grpo(path, sampler_correction="none", **several), 1, hot()))
    # The weights are those of the policy before the update, so a second pass does not change their mean.
    _, _, once = step(tmp_path, path, hot(), sampler_correction="token")
    assert watch.logged[0]["policy/sampler_weight"] == pytest.approx(once["policy/sampler_weight"], rel=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_ppo_is_corrected_too(path: str, tmp_path: Path, critic: Any) -> None:
    def run(mode: Any) -> dict[str, Tensor]:
        module = PPOModule(
            policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, beta=0.0, critic=critic,
            sampler_correction=mode,
        )  # fmt: skip
        return fit(tmp_path, module, 1, hot())

    none, token = run("none"), run("token")
    assert not same(none, token)
    if critic == "separate":  # the critic's loss has no weights
        values = [name for name in none if name.startswith("critic")]
        assert values
        assert all(torch.equal(none[name], token[name]) for name in values)


def test_a_cap_is_positive(path: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.sampler_cap: must be above 0"):
        GRPOModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], sampler_cap=0)
