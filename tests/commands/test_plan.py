"""`grpo plan`: its predictions compared with real runs, and its proposals with its own predictions."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensor
from transformers import AutoModelForCausalLM, Lfm2Config

from examples.own_algorithm import Distillation as ExampleDistillation
from grpo_lightning.__main__ import main
from grpo_lightning.algorithms import DistillationModule, FeedbackContext, OnlineModule, SFTModule
from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.commands.plan.command import CUDA, GIB, PROCESS, Overhead
from grpo_lightning.commands.plan.meter import MemoryMeter
from grpo_lightning.commands.plan.peaks import PhaseMemory
from grpo_lightning.commands.plan.plan import Planner, largest, most
from grpo_lightning.commands.plan.rehearsal import Rehearsal
from grpo_lightning.constraints import Regex
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Critic, LoRAConfig, Policy, PolicyConfig, TeacherConfig
from grpo_lightning.rollout import RolloutDataModule, SamplingParams
from grpo_lightning.rollout.experience import Demonstrations, Experience, Recipe
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.speed import packed
from grpo_lightning.speed.decoding_cache import BLOCK
from grpo_lightning.speed.registry import NAMES
from grpo_lightning.types import TokenRows
from tests.algorithms.test_ppo import CRITICS, ppo
from tests.sampling import generate
from tests.tiny import save_tiny_model
from tests.toy import LetterVerifier, ToyTask, adam, fit, grpo, half, needs_bitsandbytes

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def planner(path: str, precision: str = "32-true", on_cuda: bool = False, tokens: int = 24, **options: Any) -> Planner:
    data = {key: options.pop(key) for key in list(options) if key in DATA}
    given = {"prompts_per_step": 3, "group_size": 4, "val_batch_size": 4, "sampling": SamplingParams(max_new_tokens=16)}
    policy = {key: options.pop(key) for key in ("dtype",) if key in options}
    module = grpo(path, **options)
    module.policy_config = replace(module.policy_config, **policy)
    return Planner(module, RolloutDataModule(ToyTask(), **given | data), precision, on_cuda, tokens)


DATA = (
    "prompts_per_step",
    "group_size",
    "val_batch_size",
    "sampling",
    "refinement",
    "rollout_rows_at_once",
    "pass_at_k",
)


def rehearsal_of(module: PolicyModule, precision: str = "32-true", on_cuda: bool = False, cap: int = 16) -> Rehearsal:
    data = RolloutDataModule(ToyTask(), group_size=2, sampling=SamplingParams(max_new_tokens=cap))
    return Rehearsal(module, data, module.policy_config, precision, on_cuda)


def step_rows(prompts: list[int], completions: list[int], numbers: list[int] | None = None) -> TokenRows:
    """Rows of the given lengths, no two of them equal; those with equal numbers have the same prompt."""
    prompts_N, completions_N = torch.tensor(prompts), torch.tensor(completions)
    ids_NL = torch.zeros(len(prompts), int((prompts_N + completions_N).max()), dtype=torch.long)
    row_N = torch.arange(len(prompts))
    ids_NL[row_N, prompts_N] = row_N
    ids_NL[:, 0] = row_N if numbers is None else torch.tensor(numbers)
    return TokenRows(ids_NL, prompts_N, completions_N)


def update_of(rehearsal: Rehearsal, batch: Any) -> PhaseMemory:
    (update,) = (phase for phase in rehearsal.step(batch) if phase.name == "update")
    return update


def gradients_of(rehearsal: Rehearsal) -> int:
    """Bytes of the gradients that a small step hands to the optimizer."""
    seen: list[int] = []
    hook = rehearsal.optimizer.register_step_pre_hook(lambda *_: seen.append(rehearsal.meter.live["gradients"]))
    rehearsal.step(rehearsal.longest_batch(1, 2, 2))
    hook.remove()
    return seen[-1]


def sft(path: str, **options: Any) -> SFTModule:
    return SFTModule(PolicyConfig(path=path, **options), [LetterVerifier()], adam)


def phases(plan: Planner) -> dict[str, PhaseMemory]:
    return {phase.name: phase for phase in plan.phases(plan.settings)}


MARK = 1_000_003
"""Size of an allocation that nothing else makes: it marks where a span begins and ends among the recorded events."""


def peaks_of(run: Callable[[], object], spans: Sequence[str] = ()) -> dict[str, int]:
    """The peak of torch's allocator in bytes, from all allocations and releases that its profiler recorded.

    ``all`` is that of the whole, the others of the last span that was recorded under each name by :class:`Spans`.
    """
    # What earlier tests left in cycles must not be released among these, and no cycle of this run by chance.
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
    finally:
        gc.enable()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peaks, inside, held = dict.fromkeys(["all", *spans], 0), {"all"}, 0
    for _, change in changes:
        span, end = divmod(abs(change) - MARK, 2)
        if 0 <= span < len(spans):
            if change > 0:
                inside ^= {spans[span]}
                peaks[spans[span]] = peaks[spans[span]] if end else held
            continue
        held += change
        peaks |= {name: max(peaks[name], held) for name in inside}
    return peaks


def peak_of(run: Callable[[], object]) -> int:
    return peaks_of(run)["all"]


class Spans(pl.Callback):
    """Marks some phases of a run among the allocations, and makes every completion reach the token limit."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.phases.listeners.append(self)
        pl_module.policy.terminators = []

    def phase_started(self, name: str) -> None:
        self._mark(name, 0)

    def phase_ended(self, name: str) -> None:
        self._mark(name, 1)

    def _mark(self, name: str, end: int) -> None:
        if name in self.names:
            torch.empty(MARK + 2 * self.names.index(name) + end, dtype=torch.uint8)


# -- predictions against real runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", CRITICS, ids=str)
def test_a_ppo_run_takes_the_planned_memory(model_path: str, critic: dict[str, Any], tmp_path: Path) -> None:
    module = ppo(model_path, beta=0.1, **critic)
    data = RolloutDataModule(
        ToyTask(), prompts_per_step=4, group_size=4, val_batch_size=1, sampling=SamplingParams(max_new_tokens=24),
        max_prompt_tokens=12, overlong="truncate-left",
    )  # fmt: skip
    plan = phases(Planner(module, data, "32-true", False, prompt_tokens=12))
    assert list(plan) == ["reference", "value", "update", "rollout", "validation"]
    steps = 2 * module.updates_per_rollout
    names = ("reference", "value", "update", "rollout")
    peaks = peaks_of(lambda: fit(tmp_path, module, steps, data, callbacks=[Spans(names)]), names)
    for name in names:
        assert plan[name].total == pytest.approx(peaks[name], rel=0.1), name


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_a_run_over_4_bit_weights_takes_the_planned_memory(kind: str, tmp_path: Path) -> None:
    # Columns that bitsandbytes can unpack on a CPU: 64 divides them.
    model_path = save_tiny_model(tmp_path / "model", kind, hidden_size=64, intermediate_size=128)
    module = grpo(model_path, lora=LoRAConfig(r=4), quantization="nf4", beta=0.1)
    # Of a file in the dtype of the policy, all would stay mapped.
    module.policy_config = replace(module.policy_config, dtype="bfloat16")
    data = RolloutDataModule(
        ToyTask(), prompts_per_step=4, group_size=4, val_batch_size=1, sampling=SamplingParams(max_new_tokens=24),
        max_prompt_tokens=12, overlong="truncate-left",
    )  # fmt: skip
    plan = phases(Planner(module, data, "bf16-mixed", False, prompt_tokens=12))
    assert not any(phase.parts.get("merge copy") for phase in plan.values())
    names = ("reference", "update", "rollout")
    peaks = peaks_of(lambda: fit(tmp_path, module, 2, data, callbacks=[Spans(names)], precision="bf16-mixed"), names)
    for name in names:
        assert plan[name].total == pytest.approx(peaks[name], rel=0.1), name
    # A linear weight takes half a byte, a byte for each 64 and 4 bytes for each 64 * 256.
    (weights,) = {phase.parts["weights"] for phase in plan.values()}
    count = linear = 0
    for name, parameter in AutoModelForCausalLM.from_pretrained(model_path).named_parameters():
        packs = parameter.dim() == 2 and "embed" not in name
        count += 0 if packs else parameter.numel() * 2
        linear += parameter.numel() // 2 + parameter.numel() // 64 + 4 if packs else 0
    assert weights == count + linear


class Distillation(OnlineModule):
    """An algorithm that the planner does not know: it has a teacher, and makes tokens as likely as the teacher does."""

    def __init__(self, *args: Any, teacher_path: str = "", **kwargs: Any) -> None:
        super().__init__(*args, beta=0.0, **kwargs)
        self.teacher_path = teacher_path

    step_means = (*OnlineModule.step_means, "time/teacher_s")

    def configure_model(self) -> None:
        super().configure_model()
        self.teacher = Policy(PolicyConfig(path=self.teacher_path)).requires_grad_(False)

    def targets(self, experience: Experience, metrics: Any) -> Experience:
        width = experience.sampler_logprobs_NT.shape[1]
        with self.timed(metrics, "teacher"):
            read = lambda tokens: self.teacher.logprobs(tokens)[0]  # noqa: E731
            teacher_NT = self.passes.without_gradient(experience, experience.counted_N, read, width)
        return replace(experience, advantages=teacher_NT, reference_NT=teacher_NT)

    def losses(self, step: Any, part: Any, metrics: Any) -> Any:
        logprobs_NT, mask_NT = self.passes.with_gradient(part, metrics)
        teacher_NT = step.reference_NT[part.rows, : logprobs_NT.shape[1]]
        loss_NT = (logprobs_NT - teacher_NT).square()
        yield self.add_loss(metrics, "policy/loss", self.rollout_loss.aggregate(step, loss_NT, mask_NT))


def test_an_algorithm_that_the_planner_does_not_know_is_rehearsed(
    model_path: str, deep_model: str, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"policy": PolicyConfig(path=model_path), "verifiers": [LetterVerifier()]}
    module = Distillation(**common, optimizer=adam, teacher_path=deep_model)
    data = RolloutDataModule(
        ToyTask(), prompts_per_step=4, group_size=4, val_batch_size=1, sampling=SamplingParams(max_new_tokens=24),
        max_prompt_tokens=12, overlong="truncate-left",
    )  # fmt: skip
    plan = phases(Planner(module, data, "32-true", False, prompt_tokens=12))
    assert list(plan) == ["teacher", "update", "rollout", "validation"]
    weights = sum(parameter.nbytes for parameter in Policy(PolicyConfig(path=deep_model)).parameters())
    assert {phase.parts["teacher"] for phase in plan.values()} == {weights}
    names = ("teacher", "update", "rollout")
    peaks = peaks_of(lambda: fit(tmp_path, module, 2, data, callbacks=[Spans(names)]), names)
    for name in names:
        assert plan[name].total == pytest.approx(peaks[name], rel=0.1), name


def test_a_model_that_is_not_a_submodule_counts_too(tiny_model: Callable[[str], str], deep_model: str) -> None:
    policy, verifiers = PolicyConfig(path=tiny_model("llama")), [LetterVerifier()]
    module = ExampleDistillation(policy=policy, verifiers=verifiers, optimizer=adam, beta=0.0, teacher=deep_model)
    data = RolloutDataModule(ToyTask(), prompts_per_step=2, group_size=2, sampling=SamplingParams(max_new_tokens=8))
    plan = phases(Planner(module, data, "32-true", False, prompt_tokens=12))
    weights = sum(parameter.nbytes for parameter in Policy(PolicyConfig(path=deep_model)).parameters())
    assert {phase.parts["other models"] for phase in plan.values()} == {weights}


def distilled(path: str, teacher: TeacherConfig | str, **options: Any) -> Planner:
    module = DistillationModule(
        policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, teacher=teacher, **options
    )
    data = RolloutDataModule(
        ToyTask(), prompts_per_step=4, group_size=4, val_batch_size=1, sampling=SamplingParams(max_new_tokens=24),
        max_prompt_tokens=12, overlong="truncate-left",
    )  # fmt: skip
    return Planner(module, data, "32-true", False, prompt_tokens=12)


def test_a_distillation_is_planned_with_its_teacher(model_path: str, deep_model: str, tmp_path: Path) -> None:
    planner = distilled(model_path, TeacherConfig(deep_model))
    plan = phases(planner)
    weights = sum(parameter.nbytes for parameter in Policy(PolicyConfig(path=deep_model)).parameters())
    assert {phase.parts["teacher"] for phase in plan.values()} == {weights}
    module = distilled(model_path, TeacherConfig(deep_model)).module
    peaks = peaks_of(lambda: fit(tmp_path, module, 2, planner.data, callbacks=[Spans(["update"])]), ["update"])
    assert plan["update"].total == pytest.approx(peaks["update"], rel=0.1)


def test_the_plan_of_a_teacher_follows_its_options(tiny_model: Callable[[str], str], deep_model: str) -> None:
    def update(teacher: TeacherConfig | str, **options: Any) -> dict[str, int]:
        return update_in(distilled(tiny_model("llama"), teacher, **options)).parts

    def update_in(plan: Planner) -> PhaseMemory:
        return next(phase for phase in plan.learning(plan.settings) if phase.name == "update")

    full = update(TeacherConfig(deep_model))
    assert update(TeacherConfig(deep_model, dtype="bfloat16"))["teacher"] == full["teacher"] / 2
    eight, four = (update(TeacherConfig(deep_model, quantization=kind))["teacher"] for kind in ("int8", "nf4"))
    assert four < eight < 0.5 * full["teacher"]
    own = update("self", context=FeedbackContext())
    assert "teacher" not in own
    # Its rows have the prompt, the feedback and the completion.
    assert sum(own.values()) > update_in(planner(tiny_model("llama"), prompts_per_step=4)).total


class LoadsByItself(Distillation):
    def configure_model(self) -> None:
        super().configure_model()
        self.other = AutoModelForCausalLM.from_pretrained(self.teacher_path)


class TakesTooMuch(Distillation):
    def losses(self, step: Any, part: Any, metrics: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")


class BreaksInItsStep(Distillation):
    def losses(self, step: Any, part: Any, metrics: Any) -> Any:
        raise KeyError("teacher")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (LoadsByItself, "model: grpo plan cannot rehearse LoadsByItself: its configure_model raised RuntimeError: "),
        (TakesTooMuch, "grpo plan: this machine has not enough memory for the masks and lengths of the rehearsal"),
        (BreaksInItsStep, "model: grpo plan cannot rehearse BreaksInItsStep: its training_step raised KeyError: "),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(kind: type[Distillation], text: str, tiny_model: Any) -> None:
    path = tiny_model("llama")
    module = kind(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, teacher_path=path)
    plan = Planner(module, RolloutDataModule(ToyTask(), group_size=2), "32-true", False, prompt_tokens=12)
    with pytest.raises(ConfigError) as error:
        phases(plan)
    assert str(error.value).startswith(text)


def test_log_probs_that_are_recomputed_take_a_pass(tiny_model: Callable[[str], str]) -> None:
    path = tiny_model("llama")
    assert "reference" not in phases(planner(path, updates_per_rollout=2))
    assert "reference" in phases(planner(path, updates_per_rollout=2, old_logprobs="recompute"))


def test_a_warm_up_of_the_critic_is_not_the_plan(tiny_model: Callable[[str], str]) -> None:
    data = RolloutDataModule(ToyTask(), prompts_per_step=2, group_size=2, sampling=SamplingParams(max_new_tokens=8))
    plain, warmed = (
        phases(Planner(ppo(tiny_model("llama"), **options), data, "32-true", False, 8))["update"].total
        for options in ({}, {"critic_warmup_steps": 5})
    )
    assert plain == warmed


@pytest.mark.parametrize("critic", CRITICS, ids=str)
def test_the_persistent_memory_of_a_critic_is_exact(model_path: str, critic: dict[str, Any]) -> None:
    module = ppo(model_path, **critic)
    module.policy = Policy(module.policy_config)
    module.critic = Critic(module.policy, module.critic_form, module.critic_path, module.critic_frozen)
    trained = [parameter for side in module.trained_sides().values() for parameter in side]
    own = [*module.critic.parameters(), *module.policy.value_parameters()]
    rehearsal = rehearsal_of(ppo(model_path, **critic), cap=2)
    assert rehearsal.meter.live["critic"] == sum(parameter.nbytes for parameter in own)
    assert gradients_of(rehearsal) == sum(parameter.nbytes for parameter in trained)
    assert rehearsal.meter.live["gradients"] == 0, "they are freed when the step is over"
    # Two moments per parameter, and a step count of 4 bytes.
    assert rehearsal.meter.live["optimizer"] == sum(2 * parameter.nbytes + 4 for parameter in trained)


@pytest.mark.parametrize("lora", [None, LoRAConfig(r=4)])
def test_persistent_memory_is_exact(model_path: str, lora: LoRAConfig | None) -> None:
    module = grpo(model_path, lora=lora)
    policy = Policy(module.policy_config)
    optimizer = module.optimization.make_optimizer(policy.trainable_parameters())
    for parameter in policy.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    wanted = {
        "weights": sum(p.nbytes for name, p in policy.named_parameters() if "lora_" not in name),
        "adapter": sum(p.nbytes for name, p in policy.named_parameters() if "lora_" in name),
        "gradients": 0,
        "optimizer": sum(value.nbytes for value in state),
    }
    rehearsal = rehearsal_of(module, cap=2)
    assert {part: rehearsal.meter.live.get(part, 0) for part in wanted} == wanted
    assert gradients_of(rehearsal) == sum(p.nbytes for p in policy.trainable_parameters())


@pytest.mark.parametrize(
    ("model_path", "options", "mixed"),
    half(["llama", "lfm2"], [{}, {"lora": LoRAConfig(r=4)}, {"gradient_checkpointing": True}], [False, True]),
    indirect=["model_path"],
)
def test_the_planned_update_equals_a_real_one(model_path: str, options: dict[str, Any], mixed: bool) -> None:
    module = sft(model_path, **options)
    rows = step_rows([24] * 8, [16] * 8)
    policy = Policy(module.policy_config)
    optimizer = module.optimization.make_optimizer(policy.trainable_parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):  # as Lightning does
            logprobs_NT, _ = policy.logprobs(rows)
            logprobs_NT.sum().backward()
            optimizer.step()
        optimizer.zero_grad()

    step()  # the state of the optimizer, and caches of the libraries
    rehearsal = rehearsal_of(module, "bf16-mixed" if mixed else "32-true")
    before = sum(rehearsal.meter.live.values())
    assert update_of(rehearsal, Demonstrations(Recipe(), rows)).total - before == pytest.approx(peak_of(step), rel=0.1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_planned_rollout_equals_a_real_one(model_path: str, temperature: float) -> None:
    module, sampling = grpo(model_path), SamplingParams(temperature=temperature, max_new_tokens=16)
    policy = Policy(module.policy_config)
    policy.terminators = []  # all completions reach the token limit
    prompts = [[9] * 63, *([9 + row] * 64 for row in range(1, 8))]
    rehearsal = rehearsal_of(module)
    before = sum(rehearsal.meter.live.values())
    real = peak_of(lambda: generate(policy, prompts, 4, sampling, list(range(32))))
    assert rehearsal.rollout(8, 4, 64, sampling).total - before == pytest.approx(real, rel=0.2)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model deep enough for the temporary memory of one layer to be negligible."""
    return save_tiny_model(tmp_path_factory.mktemp("deep"), "llama", num_hidden_layers=8)


def test_a_rollout_allocates_its_cache_in_blocks(deep_model: str) -> None:
    module, sampling = grpo(deep_model), SamplingParams(max_new_tokens=BLOCK + 20)
    policy = Policy(module.policy_config)
    policy.terminators = []
    rehearsal = rehearsal_of(module)
    before = sum(rehearsal.meter.live.values())
    real = peak_of(lambda: generate(policy, [[9] * 7, [8] * 8], 4, sampling, list(range(8))))
    taken = rehearsal.rollout(2, 4, 8, sampling)
    assert taken.total - before == pytest.approx(real, rel=0.2)
    assert taken.parts["cache"] > 0.7 * real


def test_packed_weights_count_on_a_cpu(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_TRANSPOSED_ELEMENTS", 8192)  # layers are below it, the head above
    module = grpo(model_path)
    here, there = (
        rehearsal_of(module, on_cuda=on_cuda).rollout(2, 2, 8, SamplingParams()).parts for on_cuda in (False, True)
    )
    lm = Policy(module.policy_config).lm
    multiplied = sum(part.weight.nbytes for part in lm.modules() if isinstance(part, torch.nn.Linear))
    assert here["packed weights"] == multiplied
    assert "packed weights" not in there


def test_rows_that_fill_a_shape_count_on_a_gpu(tiny_model: Callable[[str], str]) -> None:
    """By hand: five rows decode as eight, with the cache of eight."""

    def cache(rows: int, on_cuda: bool) -> int:
        rehearsal = rehearsal_of(module, on_cuda=on_cuda)
        line = next(line for line in rehearsal.policy.shortcuts.lines() if "graphed_decoding" in line)
        assert line.endswith("used, if its trial succeeds when the model loads" if on_cuda else "it is for CUDA")
        return rehearsal.rollout(1, rows, 8, SamplingParams(max_new_tokens=20)).parts["cache"]

    module = grpo(tiny_model("lfm2"))
    assert cache(5, on_cuda=True) == pytest.approx(cache(8, on_cuda=True), rel=0.01)
    assert cache(5, on_cuda=False) < 0.7 * cache(8, on_cuda=False)


def test_a_shared_prompt_is_planned_as_shared(model_path: str) -> None:
    module, rows = sft(model_path), step_rows([24] * 8, [16] * 8, [0] * 4 + [1] * 4)
    (part,) = microbatches(rows, torch.arange(8), 8192, share=True)
    assert part.tokens.sharing is not None
    assert part.real_tokens == 2 * 24 + 8 * 16
    policy = Policy(module.policy_config)
    assert policy.shares_prompts
    rehearsal = rehearsal_of(module)
    before = sum(rehearsal.meter.live.values())
    real = peak_of(lambda: policy.logprobs(part.tokens)[0].sum().backward())
    assert update_of(rehearsal, Demonstrations(Recipe(), rows)).total - before == pytest.approx(real, rel=0.2)


def test_a_prompt_beyond_one_row_and_a_cap_of_one_can_be_planned(model_path: str) -> None:
    plan = planner(model_path, tokens=1, prompts_per_step=1, group_size=1, sampling=SamplingParams(max_new_tokens=1))
    assert phases(plan)["rollout"].total > 0


# -- what changes the plan ---------------------------------------------------------------------------------------------


def test_options_change_the_plan(tiny_model: Callable[[str], str], deep_model: str) -> None:
    path, lora = tiny_model("llama"), LoRAConfig(r=4)
    plain = phases(planner(path))
    assert set(plain) == {"rollout", "update", "validation"}

    def differs(phase: str, part: str, **options: Any) -> float:
        """A part of another plan, as a fraction of the plain plan's."""
        changed = phases(planner(path, **options))[phase].parts.get(part, 0)
        return changed / plain[phase].parts[part]

    assert differs("update", "weights", dtype="bfloat16") == 0.5
    assert differs("update", "optimizer", lora=lora) < 0.8
    assert differs("update", "activations", max_tokens_per_microbatch=80) < 0.5
    assert differs("update", "activations", precision="bf16-mixed") != 1
    assert differs("update", "activations", tokens=48) > 1.3
    assert differs("update", "activations", minibatches_per_update=2) < 0.8

    def alone(**options: Any) -> int:
        """The update's activations without shared prompts, which checkpointing rules out."""
        options = {"prompts_per_step": 12, "group_size": 1, "beta": 0.1} | options  # alone, only the KL has a gradient
        return phases(planner(deep_model, **options))["update"].parts["activations"]

    assert alone(gradient_checkpointing=True) < 0.8 * alone()
    assert differs("update", "activations", prompts_per_step=12, group_size=1, beta=0.1) > 1.1

    def long(phase: str, **options: Any) -> int:
        """With completions so long that the cache determines the peak, not the pass over the prompts."""
        return phases(planner(path, sampling=SamplingParams(max_new_tokens=200), **options))[phase].total

    assert long("rollout", group_size=8) > 1.3 * long("rollout", group_size=4)
    assert long("rollout", rollout_rows_at_once=4) < 0.7 * long("rollout")
    assert long("validation", val_batch_size=16) > 1.3 * long("validation", val_batch_size=4)
    with_kl = phases(planner(path, beta=0.1))
    assert with_kl["reference"].parts["reference"] == with_kl["update"].parts["weights"]
    assert "reference" not in phases(planner(path, beta=0.1, lora=lora))["reference"].parts
    assert "pass@k" in phases(planner(path, pass_at_k=[4]))
    refined = phases(planner(path, refinement=RefinementConfig(budget=2)))
    # A further attempt is sampled after the whole conversation, and trained with it as the prompt.
    assert refined["refinement"].total > refined["validation"].total
    assert refined["update"].total > plain["update"].total


def test_the_sets_of_allowed_tokens_of_a_constraint_are_planned(tiny_model: Callable[[str], str]) -> None:
    pytest.importorskip("llguidance", reason="llguidance is an extra: pip install -e '.[constraint]'")
    path, sampling = tiny_model("llama"), SamplingParams(max_new_tokens=16)
    free = phases(planner(path, sampling=sampling))
    constrained = phases(planner(path, sampling=replace(sampling, constraint=Regex("a"))))
    # By hand: 12 completions of 16 tokens, each with a set of 9 words of 4 bytes for 264 tokens, and its number.
    assert constrained["update"].parts["allowed tokens"] == 12 * 16 * (9 * 4 + 8)
    assert "allowed tokens" not in free["update"].parts
    assert constrained["update"].total > free["update"].total
    assert constrained["rollout"].total >= free["rollout"].total + 12 * 264, "one byte per row and token at least"


def test_a_gpu_keeps_the_copies_for_merging_in_host_memory(tiny_model: Callable[[str], str]) -> None:
    here, there = (
        phases(planner(tiny_model("lfm2"), on_cuda=on_cuda, lora=LoRAConfig(r=4)))["rollout"]
        for on_cuda in (False, True)
    )
    assert here.host == 0
    assert there.host == here.parts["merge copy"] > 0
    assert "merge copy" not in there.parts


# -- without weights ---------------------------------------------------------------------------------------------------


def test_a_model_of_a_billion_parameters_is_planned_without_its_weights(tmp_path: Path) -> None:
    attention = (2, 5, 8, 10, 12, 14)
    Lfm2Config(
        vocab_size=65_536, hidden_size=2048, intermediate_size=12_288, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, layer_types=["full_attention" if i in attention else "conv" for i in range(16)],
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    module = grpo(str(tmp_path), beta=0.1)
    module.policy_config = PolicyConfig(str(tmp_path), dtype="bfloat16", lora=LoRAConfig())
    rehearsal = rehearsal_of(module, on_cuda=True)
    assert rehearsal.meter.live["weights"] == 2 * 1_170_340_608
    assert all(isinstance(parameter, FakeTensor) for parameter in rehearsal.module.parameters())
    assert all(isinstance(buffer, FakeTensor) for buffer in rehearsal.module.buffers())
    assert not list(module.parameters()), "the configured module stays without a model"


def test_the_meter_counts_live_storages_and_releases_freed_ones() -> None:
    meter = MemoryMeter()
    with meter:
        with meter.counting_as("kept"):
            kept = torch.empty(1000)
        with meter.counting_as("passing"):
            passing = kept + 1
            view = passing[:10]
        del passing
        assert meter.live["passing"] == 4000  # a view keeps its storage
        del view
    assert (meter.live["kept"], meter.live["passing"]) == (4000, 0)
    assert meter.peak == {"kept": 4000, "passing": 4000}
    assert isinstance(kept, FakeTensor)


def test_large_masks_are_shapes_alone(tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    place, column = torch.arange(3000).view(-1, 1), torch.arange(3000).view(1, -1)
    with (meter := MemoryMeter()):
        mask = place >= column
        floats = torch.where(mask, torch.tensor(0.0), torch.tensor(-1.0))
        small = place[:9] >= column[:, :9]
    assert isinstance(mask, FakeTensor)
    assert isinstance(floats, FakeTensor)
    assert not isinstance(small, FakeTensor)
    # The masks, and the two rows of int64 that they are made of.
    assert meter.total == 9_000_000 + 4 * 9_000_000 + 81 + 2 * 8 * 3000
    # What is counted is the same, however few elements are computed.
    real = phases(planner(tiny_model("llama")))
    monkeypatch.setattr("grpo_lightning.commands.plan.meter.MOST_REAL", 2**8)
    assert phases(planner(tiny_model("llama"))) == real


def test_what_steers_a_step_is_known_of_fakes() -> None:
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    with MemoryMeter():
        values = torch.empty(3, 2, 5)
        assert values[mask].shape == (3, 5)
        assert values[mask[:, 0], 1].shape == (2, 5)
        assert bool(torch.isfinite(values).all())


# -- proposals ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 500), st.integers(1, 9), st.integers(0, 700))
def test_largest_finds_the_largest(high: int, offset: int, slope: int, limit: int) -> None:
    def taken(count: int) -> int:
        return offset + slope * count + count**2 // 16

    fitting = [count for count in range(1, high + 1) if taken(count) <= limit]
    assert largest(taken, limit, high) == max(fitting, default=None)


def test_a_proposal_fits_and_the_next_larger_one_does_not(tiny_model: Callable[[str], str]) -> None:
    plan = planner(tiny_model("lfm2"), tokens=40, prompts_per_step=8)
    limit = int(0.5 * most(plan.phases(plan.settings)))
    proposed = plan.propose(limit)
    assert proposed is not None
    assert most(plan.phases(proposed)) <= limit
    row = 40 + 16
    wider = replace(proposed, max_tokens_per_microbatch=proposed.max_tokens_per_microbatch + row)
    assert most(plan.learning(wider)) > limit
    assert proposed.rollout_rows_at_once is None or (
        most(plan.sampling(replace(proposed, rollout_rows_at_once=proposed.rollout_rows_at_once + 4))) > limit
    )


def test_a_proposal_fits_a_critic_too(tiny_model: Callable[[str], str]) -> None:
    module = ppo(tiny_model("llama"), critic="separate")
    data = RolloutDataModule(
        ToyTask(), prompts_per_step=4, group_size=4, val_batch_size=2, sampling=SamplingParams(max_new_tokens=32)
    )
    plan = Planner(module, data, "32-true", False, prompt_tokens=64)
    limit = int(0.7 * most(plan.phases(plan.settings)))
    proposed = plan.propose(limit)
    assert proposed is not None
    assert most(plan.phases(proposed)) <= limit
    assert proposed.max_tokens_per_microbatch < plan.settings.max_tokens_per_microbatch


def test_checkpointing_is_proposed_if_nothing_fits_without_it(tiny_model: Callable[[str], str]) -> None:
    plan = planner(tiny_model("llama"), tokens=200, prompts_per_step=1, group_size=1, val_batch_size=1, beta=0.1)
    with_it = replace(plan.settings, gradient_checkpointing=True)
    smallest, without = most(plan.phases(with_it)), most(plan.phases(plan.settings))
    assert smallest < without
    proposed = plan.propose((smallest + without) // 2)
    assert proposed is not None
    assert proposed.gradient_checkpointing
    assert plan.propose(1000) is None


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *args])
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out if exit_.value.code != 2 else captured.err


@pytest.mark.usefixtures("_in_the_repository")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_can_be_planned(
    name: str, tiny_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--model.policy.path", tiny_model("lfm2")] if name.startswith(("lfm", "smollm2")) else []
    if name == "quickstart_distill.yaml":
        path = ["--model.teacher.path", "configs/tiny_decoder"]
    code, out = run(capsys, "--config", f"configs/{name}", *path, "--memory", "64GiB", "--fast")
    assert ("ppo" in name) == (re.search(r"^value ", out, re.MULTILINE) is not None)
    assert code == 0
    assert "The plan fits" in out
    assert re.search(r"^update ", out, re.MULTILINE)


@pytest.mark.usefixtures("_in_the_repository")
def test_prompts_are_planned_within_the_positions_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", "configs/quickstart.yaml", "--fast", "--memory", "64GiB", "--data.prompts_per_step", "2"]
    _, out = run(capsys, *base, "--prompt_tokens", "8000")
    assert "Prompts are planned with 216 tokens instead of 8000: with completions of 40, the model has 256" in out
    assert "prompts of 216 tokens and completions of 40" in out
    _, out = run(capsys, *base, "--prompt_tokens", "100")
    assert "Prompts are planned" not in out


def test_a_plan_of_sft_says_how_long_it_takes_solutions_to_be(tiny_model: Callable[[str], str]) -> None:
    plan = Planner(sft(tiny_model("llama")), RolloutDataModule(ToyTask()), "32-true", False, 24)
    assert "prompts of 24 tokens and solutions of 512 (data.sampling.max_new_tokens; the data is" in plan.assumptions()


@pytest.mark.usefixtures("_in_the_repository")
def test_a_proposal_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    memory = PROCESS.fixed[1] + 15 * 10**6
    base = ["--config", "configs/quickstart.yaml", "--memory", f"{memory / 10**6}MB", "--prompt_tokens", "60"]
    base += ["--data.prompts_per_step", "4", "--data.val_batch_size", "16", "--data.sampling.max_new_tokens", "16"]
    code, out = run(capsys, *base)
    assert code == 1
    assert "does not fit" in out
    line = out.strip().splitlines()[-1]
    assert line.startswith("--model.policy.gradient_checkpointing")
    code, out = run(capsys, *base, *line.split(), "--fast")
    assert code == 0


@pytest.mark.usefixtures("_in_the_repository")
def test_the_plan_says_which_shortcuts_run(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", "configs/quickstart.yaml", "--fast", "--model.policy.without", "[early_joins]"]
    _, out = run(capsys, *base, "--trainer.accelerator", "cpu")
    lines = [line.removeprefix("shortcut ") for line in out.splitlines() if line.startswith("shortcut ")]
    assert [line.split(":")[0] for line in lines] == list(NAMES)
    trial = ", if its trial succeeds when the model loads"
    assert f"direct_decoding: used{trial}" in lines
    assert f"shared_prompts: used{trial}" in lines
    assert "packed_weights: used" in lines
    assert "early_joins: not used: switched off by model.policy.without" in lines
    assert "compiled_layers: not used: set model.policy.compile to true to use it" in lines
    gpu = ["--trainer.accelerator", "gpu", "--memory", "64GiB"]
    _, out = run(capsys, *base, *gpu, "--model.policy.compile", "true")
    assert "shortcut packed_weights: not used: it is for CPUs" in out
    assert f"shortcut compiled_layers: used{trial}" in out


@pytest.mark.usefixtures("_in_the_repository")
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", "configs/quickstart.yaml"]
    for size in ("8", "8 apples"):
        code, error = run(capsys, *base, "--memory", size)
        assert code == 2
        assert error.endswith(f"grpo: error: --memory: give a size such as 8GiB or 24GB, not {size!r}\n")
    code, error = run(capsys, *base, "--prompt_tokens", "0")
    assert (code, "--prompt_tokens" in error) == (2, True)
    code, error = run(capsys, *base, "--model.policy.path", "not/there")
    assert error.endswith(
        "grpo: error: model.policy.path: there is no folder not/there, it is not in the local cache of the hub, and "
        "HF_HUB_OFFLINE is set; grpo plan needs a folder with its config.json alone\n"
    )
    if not torch.cuda.is_available():
        code, error = run(capsys, *base, "--trainer.accelerator", "gpu")
        assert (code, "--memory" in error) == (2, True)


@pytest.mark.parametrize("overhead", [PROCESS, CUDA])
def test_a_plan_is_of_what_the_process_or_the_gpu_holds(overhead: Overhead) -> None:
    tensors = PhaseMemory("update", {"weights": 3 * GIB, "gradients": GIB})
    held = overhead.added_to(tensors)
    assert held.total == 4 * GIB + int(overhead.share[1] * 4 * GIB) + overhead.fixed[1]
    assert held.parts.items() > tensors.parts.items()
    assert overhead.leaves(held.total) == pytest.approx(tensors.total, abs=2)
    assert overhead.leaves(overhead.fixed[1] - 1) == 0


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom grpo_lightning.__main__ import main\n"
        "try:\n    main(['plan', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--memory" in done.stdout
