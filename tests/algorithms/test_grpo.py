"""One training step of GRPO against formulas written out, and each option against its absence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_lightning.advantages import (
    GDPO,
    Advantage,
    BatchStd,
    GroupStd,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    RewardMoments,
    Unscaled,
)
from grpo_lightning.algorithms import GRPOModule, NonFiniteError, VerifierError
from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.objectives import CISPO, DPPO, GMPO, GSPO, SAPO, Clip
from grpo_lightning.rollout import Experience, SamplingParams
from grpo_lightning.types import TokenRows
from grpo_lightning.verifiers import AllOf, Verdict, Verifier
from tests.toy import (
    BrokenVerifier,
    LetterVerifier,
    Watch,
    fit,
    grpo,
    lfm2_alone,
    llama_alone,
    rollouts,
    same,
    sgd,
    trainer,
)

NO_CLIP: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd}


def gradient(
    folder: Path, path: str, data: dict[str, Any] | None = None, **options: Any
) -> tuple[dict[str, torch.Tensor], Experience, dict[str, float]]:
    """Minus the change of the weights in one step of SGD with learning rate 1, with the step's batch and log."""
    watch = Watch()
    after = fit(folder, grpo(path, **NO_CLIP | options), 1, rollouts(**data or {}), callbacks=[watch])
    before = {f"policy.model.{name}": p for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    return {name: before[name] - tensor for name, tensor in after.items()}, watch.batches[0], watch.logged[0]


Trained = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="module")
def trained(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``trained(steps, data, **options)`` trains once per arguments, for all tests, and gives the weights."""
    folder, runs = tmp_path_factory.mktemp("trained"), dict[str, dict[str, Tensor]]()

    def train(steps: int, data: dict[str, Any] | None = None, **options: Any) -> dict[str, Tensor]:
        key = str((steps, data, options))
        if key not in runs:
            runs[key] = fit(folder, grpo(tiny_model("llama"), **options), steps, rollouts(**data or {}))
        return runs[key]

    return train


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-3)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((tensor - other[name]).abs().max().item() for name, tensor in one.items())


def test_the_on_policy_gradient_is_reinforce_with_a_group_baseline(model_path: str, tmp_path: Path) -> None:
    found, batch, _ = gradient(tmp_path, model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    loss = torch.zeros(())
    for row, rollout in enumerate(batch.attempts):
        group = [r.reward for r in batch.attempts[row // 4 * 4 : row // 4 * 4 + 4]]
        mean = sum(group) / 4
        std = (sum((reward - mean) ** 2 for reward in group) / 3) ** 0.5
        prompt = int(batch.tokens.prompt_lengths_N[row])
        ids = torch.tensor([batch.tokens.ids_NL[row, :prompt].tolist() + rollout.completion.token_ids])
        logprobs = model(input_ids=ids).logits[0, prompt - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, prompt:, None])[:, 0]
        # REINFORCE: the mean over rollouts of - A * d log pi, a token's share being 1 / |y|.
        loss = loss - (rollout.reward - mean) / (std + 1e-4) * chosen.mean() / 12
    loss.backward()
    close(found, {f"policy.model.{name}": p.grad for name, p in model.named_parameters()})
    assert max(tensor.abs().max() for tensor in found.values()) > 1e-3


@lfm2_alone
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"aggregation": "dapo"}, {"aggregation": "dr_grpo"}])
def test_the_gradient_does_not_depend_on_the_split(model_path: str, tmp_path: Path, options: dict[str, Any]) -> None:
    whole, batch, _ = gradient(tmp_path, model_path, max_tokens_per_microbatch=100_000, **options)
    lengths = batch.tokens.lengths_N
    assert lengths.unique().numel() > 3, "ragged rows, or nothing is tested"
    for budget in (1, int(lengths.max()) * 4):
        pieces = microbatches(batch.tokens, torch.arange(len(batch)), budget)
        assert len(pieces) > 1
        split, _, _ = gradient(tmp_path, model_path, max_tokens_per_microbatch=budget, **options)
        close(whole, split)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.5}, {"beta": 0.5, "kl_estimator": "k2"}, {"advantage": "none-scaled"}, {"advantage": "batch-std"},
        {"advantage": "leave_one_out"}, {"advantage": MaxRL(0.4)}, {"advantage": PassAtK(2, 0.4)},
        {"aggregation": "dr_grpo"}, {"aggregation": "dapo"}, {"mask_truncated": True},
        {"max_grad_norm": 0.1},
    ],
)  # fmt: skip
def test_an_option_changes_the_first_step(
    tiny_model: Callable[[str], str], tmp_path: Path, trained: Trained, options: dict[str, Any]
) -> None:
    path = tiny_model("llama")
    steps = 2 if "beta" in options else 1  # before the first step policy and reference are equal
    data = {"sampling": SamplingParams(max_new_tokens=40)}
    base = {"beta": 0.5} if "kl_estimator" in options else {}
    plain = trained(steps, data, **NO_CLIP | base)
    changed = fit(tmp_path, grpo(path, **NO_CLIP | options), steps, rollouts(**data))
    assert largest_difference(plain, changed) > 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.01}, {"epsilon_high": 0.001}, {"delta": 1.21}, {"ratio_level": "sequence"},
        {"objective": "cispo"},
        {"objective": SAPO()}, {"objective": GMPO()},
        {"objective": DPPO(threshold=1e-4)}, {"objective": DPPO("kl", 1e-6)},
        {"objective": "cispo", "cispo_epsilon_high": 1.0}, {"updates_per_rollout": 3}, {"minibatches_per_update": 3},
    ],
)  # fmt: skip
def test_an_option_of_the_ratio_changes_a_second_update(
    tiny_model: Callable[[str], str], tmp_path: Path, trained: Trained, options: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"updates_per_rollout": 2, "minibatches_per_update": 2}
    if "cispo_epsilon_high" in options:
        base |= {"objective": "cispo"}
    plain = trained(4, **base)
    changed = fit(tmp_path, grpo(tiny_model("llama"), **base | options), 4)
    assert largest_difference(plain, changed) > 1e-6


@llama_alone
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_with_kl_is_that_of_the_formula(model_path: str, tmp_path: Path, estimator: str) -> None:
    """In the second step, when the policy is no longer the reference."""
    options = {**NO_CLIP, "beta": 0.5, "kl_estimator": estimator, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    before = fit(tmp_path, grpo(model_path, **options), 1)
    watch = Watch()
    after = fit(tmp_path, grpo(model_path, **options), 2, callbacks=[watch])
    reference = AutoModelForCausalLM.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    model.load_state_dict({name.removeprefix("policy.model."): tensor for name, tensor in before.items()}, strict=False)
    loss, kls, batch = torch.zeros(()), [], watch.batches[1]
    for row, rollout in enumerate(batch.attempts):
        group = torch.tensor([r.reward for r in batch.attempts[row // 4 * 4 : row // 4 * 4 + 4]])
        advantage = (rollout.reward - group.mean()) / (group.std() + 1e-4)
        prompt = int(batch.tokens.prompt_lengths_N[row])
        ids = torch.tensor([batch.tokens.ids_NL[row, :prompt].tolist() + rollout.completion.token_ids])
        both = []
        for lm in (model, reference):
            logprobs = lm(input_ids=ids).logits[0, prompt - 1 : -1].log_softmax(-1)
            both.append(logprobs.gather(-1, ids[0, prompt:, None])[:, 0])
        log_r = both[1].detach() - both[0]  # of the reference to the policy
        kl = {"k1": -log_r, "k2": log_r**2 / 2, "k3": log_r.exp() - 1 - log_r}[estimator]
        kls += kl.tolist()
        loss = loss - (advantage * both[0] - 0.5 * kl).mean() / 12
    loss.backward()
    expected = {f"policy.model.{name}": p.grad for name, p in model.named_parameters()}
    close({name: (before[name] - tensor) / 0.1 for name, tensor in after.items()}, expected)
    assert watch.logged[1]["policy/kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert abs(watch.logged[1]["policy/kl"]) > 1e-4


@pytest.mark.parametrize(
    ("flat", "classes"),
    [
        ({}, {"objective": Clip()}),
        ({"epsilon": 0.01, "epsilon_high": 0.02, "delta": 1.1}, {"objective": Clip(0.01, 0.02, 1.1)}),
        ({"ratio_level": "sequence", "epsilon": 0.01}, {"objective": GSPO(0.01, None)}),
        ({"objective": "cispo", "cispo_epsilon_high": 1.0}, {"objective": CISPO(1.0)}),
        ({"advantage": "none-scaled"}, {"advantage": Unscaled()}),
        ({"advantage": "batch-std"}, {"advantage": BatchStd()}),
        ({"advantage": "leave_one_out"}, {"advantage": LeaveOneOut()}),
        ({"advantage": "group"}, {"advantage": GroupStd()}),
    ],
)
def test_flat_keys_and_classes_are_the_same_bit_for_bit(
    tiny_model: Callable[[str], str], tmp_path: Path, trained: Trained, flat: dict[str, Any], classes: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"updates_per_rollout": 2, "minibatches_per_update": 2}
    short = trained(4, **base | flat)
    assert same(short, fit(tmp_path, grpo(tiny_model("llama"), **base | classes), 4))


class AgainstTheStep(Advantage):
    """The reward against the mean reward of the step."""

    smallest_group = 1

    def advantages(self, rewards_BG: torch.Tensor, moments: RewardMoments) -> torch.Tensor:
        return rewards_BG - moments.mean


def test_an_advantage_of_ones_own_may_look_beyond_the_group(model_path: str, tmp_path: Path) -> None:
    data = {"group_size": 1, "prompts_per_step": 6}
    found, batch, _ = gradient(tmp_path, model_path, data, advantage=AgainstTheStep())
    model = AutoModelForCausalLM.from_pretrained(model_path)
    mean, loss = batch.reward_N.mean(), torch.zeros(())
    for row, rollout in enumerate(batch.attempts):
        prompt = int(batch.tokens.prompt_lengths_N[row])
        ids = torch.tensor([batch.tokens.ids_NL[row, :prompt].tolist() + rollout.completion.token_ids])
        logprobs = model(input_ids=ids).logits[0, prompt - 1 : -1].log_softmax(-1)
        loss = loss - (rollout.reward - mean) * logprobs.gather(-1, ids[0, prompt:, None]).mean() / 6
    loss.backward()
    close(found, {f"policy.model.{name}": p.grad for name, p in model.named_parameters()})
    with pytest.raises(ConfigError, match=r"data.group_size: .* at least 2 completions per prompt, not 1"):
        fit(tmp_path, grpo(model_path), 1, rollouts(**data))


def test_recomputed_old_logprobs_are_the_samplers(model_path: str, tmp_path: Path) -> None:
    kept = fit(tmp_path, grpo(model_path, updates_per_rollout=2, optimizer=sgd), 2)
    recomputed = fit(tmp_path, grpo(model_path, updates_per_rollout=2, old_logprobs="recompute", optimizer=sgd), 2)
    close(kept, recomputed)


@llama_alone
def test_the_aggregations_of_one_process_agree_with_each_other(model_path: str, tmp_path: Path) -> None:
    dapo, _, _ = gradient(tmp_path, model_path, aggregation="dapo")
    bnpo, _, _ = gradient(tmp_path, model_path, aggregation="bnpo")
    close(dapo, bnpo)


class Constant(Verifier):
    """Rewards that differ in some groups and not in others."""

    def __init__(self, letter: str = "ab") -> None:
        super().__init__(accept_truncated=True)
        self.letter = letter

    def verify(self, sample: Any) -> Verdict:
        varied = self.letter in sample.prompt[-1]["content"]
        return Verdict(correct=varied and len(sample.completion) % 2 == 0, format_valid=True)


@lfm2_alone
def test_groups_without_signal_cost_nothing_and_still_count_below_the_line(model_path: str, tmp_path: Path) -> None:
    data = {"prompts_per_step": 6}
    some, batch, logged = gradient(tmp_path, model_path, data, verifiers=[Constant()])
    rewards_BG = batch.reward_N.view(-1, 4)
    silent = int((rewards_BG == rewards_BG[:, :1]).all(1).sum())
    assert 0 < silent < 6
    assert logged["reward/groups_without_signal"] == pytest.approx(silent / 6)
    with_kl, _, kl_logged = gradient(tmp_path, model_path, data, verifiers=[Constant()], beta=1e-12)
    close(some, with_kl)
    assert kl_logged["policy/kl"] == pytest.approx(0, abs=1e-6)


@llama_alone
def test_rows_without_signal_do_not_run(model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    logprobs = Policy.logprobs

    def counting(self: Policy, tokens: TokenRows, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            ran.append(len(tokens))
        return logprobs(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Policy, "logprobs", counting)
    _, batch, _ = gradient(tmp_path, model_path, {"prompts_per_step": 6}, verifiers=[Constant()])
    rewards_BG = batch.reward_N.view(-1, 4)
    assert sum(ran) == int((rewards_BG != rewards_BG[:, :1]).any(1).sum()) * 4


@llama_alone
def test_a_step_without_any_signal_changes_nothing(model_path: str, tmp_path: Path) -> None:
    nothing, _, logged = gradient(tmp_path, model_path, verifiers=[Constant("never")])
    assert all((tensor == 0).all() for tensor in nothing.values())
    assert logged["reward/groups_without_signal"] == 1
    assert logged["optim/grad_norm"] == 0


@llama_alone
def test_broken_verdicts_are_left_out_and_counted(model_path: str, tmp_path: Path) -> None:
    data = {"sampling": SamplingParams(max_new_tokens=30), "group_size": 8}
    _, batch, logged = gradient(tmp_path, model_path, data, verifiers=[BrokenVerifier()], max_error_rate=1.0)
    broken = batch.reward_N.isnan()
    assert 0 < broken.sum() < len(broken)
    assert logged["reward/errors"] == pytest.approx(broken.float().mean().item())
    assert logged["reward/mean"] == pytest.approx(batch.reward_N[~broken].mean().item())
    # A reward of 0 in their place would have been another gradient.
    assert [r.verdict.error for r in batch.attempts if r.verdict.error] == [
        "BrokenVerifier: OSError: the checker is gone"
    ] * int(broken.sum())


@llama_alone
def test_too_many_errors_stop_the_run_with_the_reason(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match=r"broke on \d+ of 12 .* model.max_error_rate=0.1 .*the checker is gone"):
        fit(tmp_path, grpo(model_path, verifiers=[BrokenVerifier("")]), 1)


@llama_alone
def test_several_verifiers_give_the_mean_of_their_rewards(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, grpo(model_path, verifiers=[LetterVerifier(), Constant(""), LetterVerifier()]), 1, callbacks=[watch])
    for rollout in watch.batches[0].attempts:
        assert set(rollout.rewards_by_verifier) == {"LetterVerifier", "Constant", "LetterVerifier2"}
        assert rollout.reward == pytest.approx(sum(rollout.rewards_by_verifier.values()) / 3)
    (logged,) = watch.logged
    each = [logged[f"reward/{name}"] for name in ("LetterVerifier", "Constant", "LetterVerifier2")]
    assert logged["reward/mean"] == pytest.approx(sum(each) / 3)


class Unsafe(LetterVerifier):
    unsafe = True


class Refusing(LetterVerifier):
    def start(self) -> None:
        raise RunError("no sandbox here")


def test_a_verifier_without_isolation_is_shown_in_the_metrics(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    for verifiers, shown in (([AllOf([Unsafe()])], True), ([AllOf([LetterVerifier()])], False)):
        watch = Watch()
        fit(tmp_path, grpo(tiny_model("llama"), verifiers=verifiers), 1, callbacks=[watch])
        assert ("reward/unsafe_sandbox" in watch.logged[0]) is shown


def test_a_verifier_can_refuse_before_the_model_loads(
    tiny_model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPOModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    for verifier in (Refusing(), AllOf([Refusing()])):
        with pytest.raises(RunError, match="no sandbox here"):
            fit(tmp_path, grpo(tiny_model("llama"), verifiers=[verifier]), 1)


@pytest.mark.parametrize("kind", ["group", "none-scaled", "leave_one_out", "batch-std"])
def test_the_gain_is_what_the_normalisation_multiplies_centred_rewards_by(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    _, batch, logged = gradient(tmp_path, tiny_model("llama"), advantage=kind)
    rewards_BG = batch.reward_N.view(-1, 4)
    centred_BG = rewards_BG - rewards_BG.mean(1, keepdim=True)
    scale = {
        "group": 1 / (rewards_BG.std(1, keepdim=True) + 1e-4),
        "none-scaled": torch.ones(()),
        "leave_one_out": torch.tensor(4 / 3),
        "batch-std": 1 / (rewards_BG.std() + 1e-4),
    }[kind]
    gain = ((centred_BG * scale).square().mean() / centred_BG.square().mean()).sqrt()
    assert logged["advantage/gain"] == pytest.approx(gain.item(), rel=1e-4)


@lfm2_alone
def test_the_kl_of_an_update_is_that_from_the_policy_before_to_the_one_after(model_path: str, tmp_path: Path) -> None:
    watch, module = Watch(), grpo(model_path, updates_per_rollout=2)
    fit(tmp_path, module, 2, callbacks=[watch])
    tokens = watch.batches[0].tokens.select(torch.tensor([0]))  # a sixteenth of twelve rows
    before, after = Policy(PolicyConfig(path=model_path)), module.policy
    with torch.no_grad():
        log_ratio = after.logprobs(tokens)[0] - before.logprobs(tokens)[0]
    expected = (log_ratio.exp() - 1 - log_ratio).mean().item()
    assert expected > 1e-3
    assert watch.logged[0]["policy/update_kl"] == pytest.approx(expected, rel=1e-3)


def test_the_update_ends_early_where_its_kl_passes_the_target(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    for target, epochs in ((None, 3), (1e9, 3), (1e-6, 1)):
        watch = Watch()
        fit(tmp_path, grpo(tiny_model("llama"), updates_per_rollout=3, target_kl=target), 3, callbacks=[watch])
        assert {logged["policy/epochs"] for logged in watch.logged} == {epochs}
        assert len(watch.logged) == 3 / epochs


# -- non-finite gradients ---------------------------------------------------------------------------------------------


class Spoil(Watch):
    """Makes the gradient of chosen steps infinite, the way an overflow would."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps = steps
        self.count = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        parameter = pl_module.policy.trainable_parameters()[0]
        scale = float("nan") if self.count in self.steps else 1.0
        self.handle = parameter.register_hook(lambda grad: grad * scale)
        self.count += 1

    def on_train_batch_end(self, *args: Any) -> None:
        self.handle.remove()
        super().on_train_batch_end(*args)


@llama_alone
def test_a_step_with_a_nan_gradient_is_skipped_counted_and_written_down(model_path: str, tmp_path: Path) -> None:
    spoil = Spoil({1})
    weights = fit(tmp_path, grpo(model_path), 3, callbacks=[spoil])
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert [logged["optim/skipped_steps"] for logged in spoil.logged] == [0, 1, 1, 1]
    (file,) = (tmp_path / "nonfinite").glob("*.jsonl")
    signal = (spoil.batches[1].reward_N.view(-1, 4).std(1) > 0).sum() * 4
    assert len(file.read_text().splitlines()) in range(1, int(signal) + 1)


@llama_alone
def test_a_second_nan_in_a_row_stops_the_run(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"two consecutive training steps .*nonfinite"):
        fit(tmp_path, grpo(model_path), 5, callbacks=[Spoil({1, 2})])


def test_one_bad_rollout_may_spoil_all_its_updates(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    spoil = Spoil({1})
    fit(tmp_path, grpo(tiny_model("llama"), updates_per_rollout=2), 8, callbacks=[spoil])
    assert spoil.logged[-1]["optim/skipped_steps"] == 2


class MeanOfTheBatch(Clip):
    def terms(self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor) -> Any:
        return super().terms(logprobs_NT, old_logprobs_NT, advantages_NT - advantages_NT.mean(), mask_NT)


class OnePerGroup(Advantage):
    def advantages(self, rewards_BG: Tensor, moments: RewardMoments) -> Tensor:
        return rewards_BG.sum(1)


# -- options that exclude each other ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "data", "text"),
    [
        ({}, {"group_size": 1}, "data.group_size: .* at least 2 completions per prompt, not 1"),
        ({}, {"sampling": SamplingParams(temperature=0)}, "data.sampling.temperature: greedy completions"),
        ({"beta": -1.0}, {}, "model.beta: must be a number from 0 on, not -1.0"),
        ({"beta": float("nan")}, {}, "model.beta: must be a number from 0 on, not nan"),
        ({"delta": 1.1}, {}, "model: delta must be above"),
        ({"epsilon": -0.1}, {}, "model: epsilon"),
        ({"kl_estimator": "k9"}, {}, "model.kl_estimator: must be one of k1, k2, k3, not 'k9'"),
        ({"aggregation": "mean"}, {}, "model.aggregation: must be one of grpo, .*, not 'mean'"),
        ({"objective": GSPO(), "epsilon": 0.1}, {}, "model.epsilon: epsilon belongs to Clip, but .* class .GSPO"),
        ({"objective": MeanOfTheBatch()}, {}, "model.objective: MeanOfTheBatch: its loss for a completion changes"),
        ({"advantage": OnePerGroup()}, {}, "model.advantage: OnePerGroup.advantages must return a tensor of shape"),
        ({"advantage": GDPO()}, {}, "model.advantage: GDPO: it normalises several rewards, and this run has none"),
        ({"advantage": PassAtK(4)}, {"group_size": 4}, "data.group_size: .* at least 5 completions per prompt, not 4"),
        ({"updates_per_rollout": 0}, {}, "model.updates_per_rollout: must be at least 1"),
        ({"target_kl": -1.0}, {}, "model.target_kl: must be above 0, or null"),
        ({"max_error_rate": 2.0}, {}, "model.max_error_rate: must be from 0 to 1"),
        ({"max_grad_norm": 0.0}, {}, "model.max_grad_norm: must be above 0"),
        ({"max_tokens_per_microbatch": 0}, {}, "model.max_tokens_per_microbatch: must be at least 1"),
        (
            {"minibatches_per_update": 13}, {},
            r"model.minibatches_per_update: 13 optimizer steps cannot share the 12 completions that a device has",
        ),
        ({"verifiers": []}, {}, "model.verifiers: give at least one"),
        ({"beta": 0.1, "reference": "none"}, {}, "model.beta: above 0 it needs a reference"),
        ({}, {"rollout_rows_at_once": 0}, "data.rollout_rows_at_once: must be at least 1"),
        ({}, {"prompts_per_step": 0}, "data.prompts_per_step: must be at least 1"),
        ({}, {"pass_at_k": [4], "pass_samples": 2}, "data.pass_at_k: every k must be from 1 to pass_samples"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence_before_the_model_loads(
    tmp_path: Path,
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    module: dict,
    data: dict,
    text: str,
) -> None:
    monkeypatch.setattr(GRPOModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=text) as error:
        fit(tmp_path, grpo(tiny_model("llama"), **module), 1, rollouts(**data))
    assert "\n" not in str(error.value)


def test_float16_weights_are_refused_before_they_load_unless_they_are_frozen_or_only_read(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    policy = PolicyConfig(tiny_model("llama"), dtype="float16")
    with pytest.raises(ConfigError, match=r"model.policy.dtype: float16 weights cannot be trained"):
        fit(tmp_path, GRPOModule(policy, LetterVerifier()), 1)
    GRPOModule(policy, LetterVerifier()).setup("test")
    GRPOModule(replace(policy, lora=LoRAConfig(r=2)), LetterVerifier()).setup("fit")


def test_as_many_minibatches_as_completions(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    data = rollouts()
    trainer(tmp_path, 12).fit(grpo(tiny_model("llama"), minibatches_per_update=12), datamodule=data)
    assert data.steps_done == 1


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (partial(torch.optim.AdamW, lr=-0.1), "model.optimizer: Invalid learning rate: -0.1"),
        (partial(torch.optim.SGD, tempo=1), "model.optimizer: .* unexpected keyword.* 'tempo'"),
    ],
)
def test_options_that_an_optimizer_does_not_take_are_one_sentence(
    tiny_model: Callable[[str], str], tmp_path: Path, optimizer: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, grpo(tiny_model("llama"), optimizer=optimizer), 1)


def test_the_objective_of_distilled_attempts_is_no_option() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GRPOModule, "model")
    required = ["--model.policy.path", "x", "--model.verifiers", "[]", "--model.objective"]
    for objective in ("clip", "cispo"):
        assert parser.parse_args([*required, objective]).model.objective == objective
    with pytest.raises(ArgumentError, match="objective"):
        parser.parse_args([*required, "shaped"])


def test_loss_scaling_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match=r"trainer.precision: 16-mixed is not supported"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, plugins=[plugin])
    with pytest.raises(ConfigError, match=r"trainer.precision: bf16-true is not supported: use bf16-mixed"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, precision="bf16-true")


def test_truncated_sampling_in_training_is_said_and_measured(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"sampling": SamplingParams(max_new_tokens=16, top_p=0.5)}
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        _, batch, logged = gradient(tmp_path, tiny_model("llama"), data)
    assert "make training samples off-policy" in caplog.text
    gaps = [
        a - b
        for r in batch.attempts
        for a, b in zip(r.completion.sampling_logprobs, r.completion.logprobs, strict=True)
    ]
    assert logged["policy/truncation_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert logged["policy/truncation_gap"] > 0.1


@lfm2_alone
def test_the_rows_that_decode_together_set_the_memory_and_never_the_result(model_path: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, grpo(model_path), 2)
    for rows in (1, 5, 8):
        close(whole, fit(tmp_path, grpo(model_path), 2, rollouts(rollout_rows_at_once=rows)))


@lfm2_alone
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_lora_over_bfloat16_learns_under_each_precision(model_path: str, tmp_path: Path, precision: Any) -> None:
    module = GRPOModule(
        policy=PolicyConfig(path=model_path, dtype="bfloat16", lora=LoRAConfig(r=4)),
        verifiers=[LetterVerifier()],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    watch = Watch()
    fit(tmp_path, module, 3, callbacks=[watch], precision=precision)
    assert watch.logged[-1]["policy/kl"] > 0
    assert watch.logged[-1]["optim/grad_norm"] > 0
