"""The seam between data, module and callbacks: what a user's own class has to have, and what it gets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo_lightning.advantages import GroupStd
from grpo_lightning.algorithms import OnlineModule, SFTModule
from grpo_lightning.callbacks import StopWhen
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import length_mask, masked_sum
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.phases import Phases
from grpo_lightning.rollout import (
    Collect,
    EvaluationBatch,
    EvaluationEnd,
    Experience,
    Learner,
    PromptBatch,
    RefinementConfig,
    RolloutDataModule,
    RunCallback,
    SamplingParams,
    StepEnd,
    step_ended,
)
from grpo_lightning.rollout import collector as collector_module
from tests.rollout.test_refinement import Parity
from tests.toy import LetterVerifier, Watch, adam, fit, grpo, llama_alone, rollouts, same, trainer

ROOT = Path(__file__).parents[2]

# -- a module of the user's own ---------------------------------------------------------------------------------------


class Own(pl.LightningModule):
    """A LightningModule that is no PolicyModule: REINFORCE in a training step of Lightning's own kind."""

    def __init__(self, path: str, reports: bool = True) -> None:
        super().__init__()
        self.policy_config = PolicyConfig(path=path)
        self.policy: Policy
        self.verifiers = {"letters": LetterVerifier()}
        self.phases = Phases()
        self.reports = reports
        self.asked: list[PromptBatch] = []
        self.stages: list[tuple[str, int]] = []

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = Policy(self.policy_config)

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        self.stages.append((stage, data.group_size))

    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience:
        self.asked.append(prompts)
        return collect(prompts)

    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        logprobs_NT, _ = self.policy.logprobs(batch.tokens)
        mask_NT = length_mask(batch.tokens.completion_lengths_N)
        advantages_N = GroupStd()(batch.of_groups(batch.reward_N)).flatten()
        if self.reports:
            step_ended(self, StepEnd(batch.recipe.step, {"mine": 1.0}, replace(batch, advantages=advantages_N)))
        return -masked_sum(advantages_N[:, None] * logprobs_NT, mask_NT) / len(batch)

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        self.log("val/mine", sum(attempt.reward for attempt in batch.single.attempts) / len(batch.single))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self.policy.trainable_parameters())


def learner(module: Own) -> Learner:
    """For mypy: it is one."""
    return module


@llama_alone
def test_a_users_own_module_gets_its_batches_through_the_data_module(model_path: str, tmp_path: Path) -> None:
    module, heard, data = Own(model_path), Heard(), rollouts()
    before = [p.detach().clone() for p in AutoModelForCausalLM.from_pretrained(model_path).parameters()]
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path, 3, callbacks=[heard], limit_val_batches=1, val_check_interval=2)
    run.fit(learner(module), datamodule=data)
    assert module.stages == [("fit", 4)]
    assert [prompts.recipe.step for prompts in module.asked] == [end.step for end in heard.ends] == [0, 1, 2]
    recipe = module.asked[0].recipe
    assert (recipe.purpose, recipe.group_size, recipe.sampling, recipe.seed) == ("train", 4, data.sampling, 1)
    assert [len(prompts.prompts) for prompts in module.asked] == [3, 3, 3]
    assert len({key for prompts in module.asked for key in prompts.keys}) == 9
    assert data.steps_done == 3
    assert "val/mine" in run.callback_metrics
    # Its first batch is the one that GRPO would have got.
    watch = Watch()
    fit(tmp_path, grpo(model_path), 1, callbacks=[watch])
    first, theirs = heard.ends[0].experience, watch.batches[0]
    assert first is not None
    assert torch.equal(first.tokens.ids_NL, theirs.tokens.ids_NL)
    assert torch.equal(first.reward_N, theirs.reward_N)
    assert any((p != old).any() for p, old in zip(module.policy.model.parameters(), before, strict=True))


@llama_alone
def test_a_step_that_does_not_report_its_end_is_refused_with_the_line_to_add(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Own\.training_step did not report its end: call .*step_ended"):
        trainer(tmp_path, 3).fit(Own(model_path, reports=False), datamodule=rollouts())


class Foreign(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Learns from whatever comes."""

    def configure_optimizers(self) -> None:
        """None."""


def test_a_module_that_is_no_learner_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: Foreign does not say what it learns from"):
        trainer(tmp_path, 1).fit(Foreign(), datamodule=rollouts())


@llama_alone
def test_a_callback_that_needs_more_of_the_module_says_so(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="callbacks: StopWhen needs a PolicyModule, not Own: remove StopWhen"):
        trainer(tmp_path, 1, callbacks=[StopWhen(reward=1.0)]).fit(Own(model_path), datamodule=rollouts())


# -- what callbacks are told ------------------------------------------------------------------------------------------


class Heard(RunCallback):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.data: list[tuple[RolloutDataModule, str]] = []
        self.ends: list[StepEnd] = []
        self.batches: list[tuple[str, EvaluationBatch]] = []
        self.evaluations: list[EvaluationEnd] = []
        self.order: list[str] = []

    def on_data_ready(self, trainer: pl.Trainer, data: RolloutDataModule, stage: str) -> None:
        self.data.append((data, stage))

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        self.ends.append(end)
        self.order.append("step")

    def on_evaluation_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, purpose: str, batch: EvaluationBatch
    ) -> None:
        self.batches.append((purpose, batch))

    def on_evaluation_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: EvaluationEnd) -> None:
        self.evaluations.append(end)
        self.order.append("evaluation")

    def on_train_batch_end(self, *_: Any) -> None:
        self.order.append("batch")

    def on_validation_end(self, *_: Any) -> None:
        self.order.append("validation")


@llama_alone
def test_a_step_end_holds_the_advantages_and_what_was_logged(model_path: str, tmp_path: Path) -> None:
    heard, watch, data = Heard(), Watch(), rollouts()
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 2}
    plain = fit(tmp_path, grpo(model_path, beta=0.1), 2, rollouts(), **options)
    assert same(plain, fit(tmp_path, grpo(model_path, beta=0.1), 2, data, callbacks=[heard, watch], **options))
    assert heard.data == [(data, "fit")]
    assert heard.order == ["step", "batch", "step", "batch", "evaluation", "validation"]
    for step, (end, logged) in enumerate(zip(heard.ends, watch.logged, strict=True)):
        assert end.step == step
        for name, value in end.metrics.items():
            assert logged[name] == pytest.approx(value, rel=1e-6), name
        assert {"policy/loss", "reward/mean", "optim/lr", "total/rollout_tokens"} <= end.metrics.keys()
        experience = end.experience
        assert experience is not None
        reward_BG = watch.batches[step].reward_N.view(3, 4)
        torch.testing.assert_close(experience.advantages, GroupStd()(reward_BG).flatten())
        assert experience.reference_NT is not None
        assert experience.reference_NT.shape == experience.sampler_logprobs_NT.shape
        assert experience.learned_N.all()
        assert [attempt.reward for attempt in experience.attempts] == pytest.approx(experience.reward_N.tolist())
        # What was collected has not been changed in place.
        assert watch.batches[step].advantages is None
    (end,), batches = heard.evaluations, [batch for _, batch in heard.batches]
    assert end.purpose == "val"
    judged = [attempt.verdict.correct for batch in batches for attempt in batch.single.attempts]
    assert end.metrics["val/accuracy"] == pytest.approx(sum(judged) / 24)
    assert {batch.single.recipe.purpose for batch in batches} == {"val"}


@llama_alone
def test_a_step_of_demonstrations_has_metrics_and_no_experience(model_path: str, tmp_path: Path) -> None:
    heard = Heard()
    module = SFTModule(policy=PolicyConfig(path=model_path), verifiers=[LetterVerifier()], optimizer=adam)
    fit(tmp_path, module, 2, callbacks=[heard])
    assert [(end.step, end.experience) for end in heard.ends] == [(0, None), (1, None)]
    assert heard.ends[1].metrics["policy/loss"] > 0


@llama_alone
def test_a_test_tells_its_batches_and_its_end(model_path: str, tmp_path: Path) -> None:
    heard = Heard()
    data = rollouts(pass_at_k=[2], pass_samples=3)
    trainer(tmp_path, 1, limit_test_batches=1, callbacks=[heard]).test(grpo(model_path), datamodule=data)
    ((purpose, batch),), (end,) = heard.batches, heard.evaluations
    assert (purpose, end.purpose, batch.single.recipe.purpose) == ("test", "test", "test")
    assert batch.sampled is not None
    assert batch.sampled.recipe.group_size == 3
    assert {"test/accuracy", "test/pass@2"} <= end.metrics.keys()


@llama_alone
def test_the_collector_is_made_once(model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = collector_module.Collector.__init__

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(collector_module.Collector, "__init__", counting)
    fit(tmp_path, grpo(model_path), 3, limit_val_batches=1, val_check_interval=2)
    assert len(made) == 1


@llama_alone
def test_a_verifier_sees_how_the_prompt_ends(model_path: str, tmp_path: Path) -> None:
    ends: list[tuple[str, str]] = []

    class Seeing(Parity):
        def verify(self, sample: Any) -> Any:
            if sample.token_ids is not None:  # not a control that no policy has written
                ends.append((sample.prompt[-1]["content"], sample.prompt_end))
            return super().verify(sample)

    refinement = RefinementConfig(budget=4, template="{feedback} Again.")
    data = rollouts(refinement=refinement, sampling=SamplingParams(max_new_tokens=80))
    fit(tmp_path, grpo(model_path, verifiers=[Seeing()]), 1, data)
    first = [end for prompt, end in ends if end.endswith(f"{prompt}<|im_end|>\n<|im_start|>assistant\n")]
    later = [end for _, end in ends if end.endswith("Again.<|im_end|>\n<|im_start|>assistant\n")]
    assert len(first) == 12
    assert later
    assert len(first) + len(later) == len(ends)
    assert all(len(end) <= 64 for _, end in ends)


# -- the knot stays untied --------------------------------------------------------------------------------------------

SOURCES = sorted([*(ROOT / "grpo_lightning").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")])


@pytest.mark.parametrize(
    "spelling", [r"trainer\.datamodule", r"learns_from", r"lightning_module: Any", r"_module: Any"]
)
def test_nobody_reaches_back(spelling: str) -> None:
    found = [str(file.relative_to(ROOT)) for file in SOURCES if re.search(spelling, file.read_text())]
    assert not found


def test_the_path_from_the_data_to_the_callbacks_is_typed() -> None:
    """No parameter or result on the way is ``Any``, so mypy sees all of it."""
    hooks = [RolloutDataModule.on_after_batch_transfer, OnlineModule.batch_from, OnlineModule.training_step,
             SFTModule.batch_from, SFTModule.training_step, OnlineModule.targets, OnlineModule.losses,
             OnlineModule.finish_step, OnlineModule.validation_step, step_ended, RunCallback.on_data_ready,
             RunCallback.on_step_end, RunCallback.on_evaluation_batch, RunCallback.on_evaluation_end]  # fmt: skip
    spaces = {"RolloutDataModule": RolloutDataModule}
    for hook in hooks:
        hints = get_type_hints(hook, localns=spaces)
        assert Any not in hints.values(), f"{hook.__qualname__}: {hints}"
    for noun in (StepEnd, EvaluationEnd, EvaluationBatch, Experience, PromptBatch):
        assert Any not in get_type_hints(noun).values(), noun
    mypy_ignores = [
        (file.name, line)
        for file in SOURCES
        for line in file.read_text().splitlines()
        if "type: ignore" in line and "datamodule" in line
    ]
    assert not mypy_ignores
