"""The entropy bonus and learning from the tokens with the largest entropy, against formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_lightning.algorithms import (
    DistillationModule,
    EntropyBonus,
    GRPOModule,
    PPOModule,
    ScheduledEntropy,
    TargetEntropy,
    TeacherContext,
)
from grpo_lightning.algorithms.top_entropy import _threshold
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import Experience, RolloutDataModule, RunCallback, SamplingParams, StepEnd
from grpo_lightning.types import Attempt, Sample, Verdict
from grpo_lightning.verifiers import Verifier
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, llama_alone, rollouts, same, sgd

SGD: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd}


class Wrong(Verifier):
    """No completion is ever right, so no group has a signal."""

    def __init__(self) -> None:
        super().__init__(accept_truncated=True)

    def verify(self, sample: Sample) -> Verdict:
        return Verdict(correct=False, format_valid=True)


class Learned(RunCallback):
    experience: Experience

    def on_step_end(self, trainer: Any, module: Any, end: StepEnd) -> None:
        assert end.experience is not None
        self.experience = end.experience


def plain_logprobs(model: Any, batch: Experience, row: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """``[T]`` log-probs and ``[T]`` entropies of a row's completion, from the whole ``[T, V]`` of a plain forward."""
    prompt, completion = int(batch.tokens.prompt_lengths_N[row]), batch.attempts[row].completion.token_ids
    ids = torch.tensor([batch.tokens.ids_NL[row, :prompt].tolist() + completion])
    logprobs_TV = (model(input_ids=ids).logits[0, prompt - 1 : -1] / temperature).log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(-1, ids[0, prompt:, None])[:, 0], entropy_T


def step_of(path: str, after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Minus the change of the weights, which is the gradient under SGD with learning rate 1."""
    before = {f"policy.model.{name}": p for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    return {name: before[name] - tensor for name, tensor in after.items()}


def close(found: dict[str, Tensor], model: Any) -> None:
    expected = {f"policy.model.{name}": p.grad for name, p in model.named_parameters()}
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-3)


# -- the bonus --------------------------------------------------------------------------------------------------------


@llama_alone
@pytest.mark.parametrize("budget", [8192, 40], ids=["whole", "split"])
def test_without_a_signal_the_step_is_the_gradient_of_the_mean_entropy(
    model_path: str, tmp_path: Path, budget: int
) -> None:
    watch = Learned()
    options = {
        **SGD,
        "verifiers": [Wrong()],
        "entropy_bonus": ScheduledEntropy(0.5),
        "max_tokens_per_microbatch": budget,
    }
    data = rollouts(sampling=SamplingParams(temperature=0.8, max_new_tokens=12))
    after = fit(tmp_path, grpo(model_path, **options), 1, data, callbacks=[watch])
    model = AutoModelForCausalLM.from_pretrained(model_path)
    rows = range(len(watch.experience))
    loss = sum(-0.5 * plain_logprobs(model, watch.experience, row, 0.8)[1].mean() / len(rows) for row in rows)
    loss.backward()
    close(step_of(model_path, after), model)


@llama_alone
def test_the_bonus_is_added_to_the_objective_and_the_kl(model_path: str, tmp_path: Path) -> None:
    watch = Learned()
    options = {**SGD, "entropy_bonus": ScheduledEntropy(0.2), "beta": 0.1, "advantage": "none-scaled"}
    after = fit(tmp_path, grpo(model_path, **options), 1, callbacks=[watch])
    model, batch, loss = AutoModelForCausalLM.from_pretrained(model_path), watch.experience, torch.zeros(())
    for row in range(12):
        group = batch.reward_N[row // 4 * 4 : row // 4 * 4 + 4]
        logprobs, entropies = plain_logprobs(model, batch, row)
        # The gradient of k3 is 0 where policy and reference are equal, as in a first step.
        loss = loss - ((batch.reward_N[row] - group.mean()) * logprobs + 0.2 * entropies).mean() / 12
    loss.backward()
    close(step_of(model_path, after), model)


def test_a_bonus_raises_the_entropy_and_a_penalty_lowers_it(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    ends = {}
    for coef in (0.1, -0.1):
        watch = Watch()
        module = grpo(tiny_model("llama"), verifiers=[Wrong()], entropy_bonus=ScheduledEntropy(coef), optimizer=adam)
        fit(tmp_path, module, 4, callbacks=[watch])
        ends[coef] = [logged["policy/entropy"] for logged in watch.logged]
    assert ends[0.1][-1] > ends[0.1][0]
    assert ends[-0.1][-1] < ends[-0.1][0]


def test_a_schedule_by_hand() -> None:
    assert [ScheduledEntropy(0.1).coefficient(step) for step in (0, 7)] == [0.1, 0.1]
    schedule = ScheduledEntropy(0.1, 0.02, 4)
    assert [schedule.coefficient(step) for step in range(6)] == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02])


def test_a_target_by_hand() -> None:
    bonus = TargetEntropy(0.2, 0.01, 0.02)
    coefficients = [bonus.coefficient(0)]
    for entropy in (0.1, 0.1, 0.1, 0.3, 0.2, 0.1):
        bonus.measured(entropy)
        coefficients.append(bonus.coefficient(0))
    # c: 0, .01, .02, .02 (its cap), .01 (does not count above the target), 0 (at the target it shrinks), .01
    assert coefficients == pytest.approx([0, 0.01, 0.02, 0.02, 0, 0, 0.01])
    for _ in range(3):
        bonus.measured(1.0)
    assert bonus.state() == {"coef": 0.0, "counts": 0.0}, "never below 0"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScheduledEntropy(math.nan), "ScheduledEntropy: coef and final_coef must be finite"),
        (lambda: ScheduledEntropy(0.1, 0.0), "ScheduledEntropy: a schedule needs both final_coef and steps"),
        (lambda: ScheduledEntropy(0.1, steps=4), "ScheduledEntropy: a schedule needs both final_coef and steps"),
        (lambda: ScheduledEntropy(0.1, 0.0, 0), "ScheduledEntropy: steps must be at least 1, but is 0"),
        (lambda: TargetEntropy(target=0.0), "TargetEntropy: target must be above 0"),
        (lambda: TargetEntropy(delta=-1.0), "TargetEntropy: delta must be above 0"),
        (lambda: TargetEntropy(max_coef=math.inf), "TargetEntropy: max_coef must be above 0"),
    ],
)
def test_bad_options(build: Callable[[], EntropyBonus], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_adapted_coefficient_follows_the_logged_entropy_and_is_resumed(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    def module() -> Any:
        # A target that no policy reaches, so that the coefficient grows to its cap.
        return grpo(tiny_model("llama"), entropy_bonus=TargetEntropy(50.0, 0.01, 0.03), optimizer=adam)

    whole, part, rest = Watch(), Watch(), Watch()
    one = fit(tmp_path / "whole", module(), 6, callbacks=[whole])
    coefficients = [logged["policy/entropy_coef"] for logged in whole.logged]
    assert coefficients == pytest.approx([0, 0.01, 0.02, 0.03, 0.03, 0.03])
    fit(tmp_path / "part", module(), 3, callbacks=[part, RunCheckpoint()], enable_checkpointing=True)
    last = str(tmp_path / "part/checkpoints/last.ckpt")
    resumed = fit(tmp_path / "rest", module(), 6, callbacks=[rest], ckpt_path=last)
    assert [logged["policy/entropy_coef"] for logged in rest.logged] == pytest.approx([0.03, 0.03, 0.03])
    assert same(one, resumed)


class Silent(TeacherContext):
    """Teaches nothing."""

    def contexts(self, attempts: Sequence[Attempt], tokenizer: Any) -> list[None]:
        return [None] * len(attempts)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(GRPOModule, {}), (PPOModule, {}), (DistillationModule, {"teacher": "self", "context": Silent()})],
)
def test_the_coefficient_grows_when_no_group_has_a_signal(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: Any, options: dict[str, Any]
) -> None:
    watch = Watch()
    module = kind(
        policy=PolicyConfig(tiny_model("llama")), verifiers=[Wrong()], beta=0.0, optimizer=sgd,
        entropy_bonus=TargetEntropy(50.0, 0.01, 0.03), **options,
    )  # fmt: skip
    fit(tmp_path, module, 3, callbacks=[watch])
    assert [logged["policy/entropy_coef"] for logged in watch.logged] == pytest.approx([0, 0.01, 0.02])


# -- the tokens with the largest entropy ------------------------------------------------------------------------------


def test_the_threshold_by_hand() -> None:
    values = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    assert _threshold(values, 0.2) == pytest.approx(0.9)
    assert _threshold(values, 0.21) == pytest.approx(0.7)
    assert _threshold(values, 1.0) == pytest.approx(0.1)
    assert _threshold(values[:0], 0.5) == math.inf


@llama_alone
@pytest.mark.parametrize("budget", [8192, 40], ids=["whole", "split"])
def test_only_the_tokens_with_the_largest_entropy_are_learned(model_path: str, tmp_path: Path, budget: int) -> None:
    watch = Learned()
    options = {**SGD, "top_entropy_share": 0.3, "aggregation": "dapo", "max_tokens_per_microbatch": budget}
    after = fit(tmp_path, grpo(model_path, **options), 1, callbacks=[watch])
    model, batch, rows = AutoModelForCausalLM.from_pretrained(model_path), watch.experience, range(12)
    both = [plain_logprobs(model, batch, row) for row in rows]
    groups = [batch.reward_N[row // 4 * 4 : row // 4 * 4 + 4] for row in rows]
    advantages = [(batch.reward_N[row] - groups[row].mean()) / (groups[row].std() + 1e-4) for row in rows]
    entropies = torch.cat([entropy.detach() for (_, entropy), a in zip(both, advantages, strict=True) if a != 0])
    threshold = entropies.sort(descending=True).values[math.ceil(0.3 * len(entropies)) - 1]
    loss, tokens = torch.zeros(()), sum(len(logprobs) for logprobs, _ in both)
    for (logprobs, entropy), advantage in zip(both, advantages, strict=True):
        loss = loss - (advantage * logprobs * (entropy.detach() >= threshold - 1e-6)).sum() / tokens
    loss.backward()
    close(step_of(model_path, after), model)
    assert batch.advantages is not None
    learned = (batch.advantages != 0).sum().item()
    assert learned == math.ceil(0.3 * len(entropies))


# -- each changes a run -----------------------------------------------------------------------------------------------


def of(kind: str, path: str, **options: Any) -> Any:
    if kind == "grpo":
        return grpo(path, **options)
    critic = {"critic": kind.removeprefix("ppo-")}
    return PPOModule(
        policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], beta=0.0, optimizer=adam, **critic, **options
    )


@pytest.mark.parametrize("kind", ["grpo", "ppo-shared", "ppo-separate"])
def test_each_option_changes_a_run(tiny_model: Callable[[str], str], tmp_path: Path, kind: str) -> None:
    def run(**options: Any) -> dict[str, Tensor]:
        data: RolloutDataModule = rollouts(sampling=SamplingParams(max_new_tokens=12))
        return fit(tmp_path, of(kind, tiny_model("llama"), **options), 2, data)

    plain = run()
    assert same(plain, run(entropy_bonus=ScheduledEntropy(0.0)))
    for options in (
        {"entropy_bonus": ScheduledEntropy(0.1)},
        {"entropy_bonus": ScheduledEntropy(0.0, 0.1, 1)},
        {"entropy_bonus": TargetEntropy(target=50.0, delta=0.1, max_coef=1.0)},
        {"top_entropy_share": 0.2},
    ):
        assert not same(plain, run(**options)), options
    assert same(plain, run(top_entropy_share=1.0))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_bad_share_is_refused(tiny_model: Callable[[str], str], share: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.top_entropy_share: must be above 0 and at most 1, or null"):
        grpo(tiny_model("llama"), top_entropy_share=share)
