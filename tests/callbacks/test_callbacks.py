"""What the callbacks of every run say, write and do."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from transformers import AutoModelForCausalLM

from grpo_lightning.algorithms import DistillationModule, PPOModule
from grpo_lightning.callbacks import (
    AdaptiveKL,
    HealthCheck,
    PolicyExport,
    PredictionWriter,
    ReferenceSync,
    RunCheckpoint,
    RunSummary,
    StepProgressBar,
    StopWhen,
)
from grpo_lightning.callbacks.health import preflight
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.rollout import SamplingParams, StepEnd
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.types import Completion, FinishReason
from tests.algorithms.test_grpo import Constant
from tests.rollout.test_episodes import Chatty
from tests.toy import LetterVerifier, ToyTask, Watch, experience, fit, grpo, llama_alone, rollouts, same, trainer

STOP, CUT = FinishReason.STOP, FinishReason.LENGTH


@pytest.mark.parametrize(
    ("rows", "wanted", "unwanted"),
    [
        ([(1.0, STOP), (0.0, STOP)], ["1 of 1 groups have a signal", "100% ended"], ["raise", "broke"]),
        ([(0.0, CUT), (0.0, CUT)], ["truncated, and no group has a signal to learn from: raise data.sampling.max"], []),
        ([(0.0, CUT), (1.0, CUT)], ["100% of the completions were truncated: raise"], ["no group"]),
        ([(1.0, CUT), (1.0, CUT)], ["100% of the completions were truncated: 2 of these 2 hold the right"], ["raise"]),
        ([(0.0, STOP), (0.0, STOP)], ["no group has a signal to learn from: 0 of 2 are correct"], ["truncated:"]),
        ([(1.0, STOP), (1.0, STOP)], ["the policy solves these prompts already: take harder"], ["raise"]),
        ([(float("nan"), STOP), (1.0, STOP)], ["a verifier broke on 1 completions, first: gone"], []),
        ([(float("nan"), STOP)] * 2, ["no reward; 0 of 1", "broke on 2"], ["nan", "raise"]),
    ],
)  # fmt: skip
def test_preflight_says_what_is_wrong_and_what_to_change(rows: Any, wanted: list[str], unwanted: list[str]) -> None:
    text = "\n".join(line for _, line in preflight(experience(rows), 0.5))
    assert all(part in text for part in wanted)
    assert not any(part in text for part in unwanted)
    assert "1 to 2 tokens" in text


@llama_alone
def test_the_preflight_compares_whole_episodes(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Two groups of two episodes with two turns. The turns' rewards differ, those of the first group's episodes do not.
    alone = experience([(1.0, STOP), (0.0, STOP), (0.0, STOP), (0.0, STOP)])
    later = [
        replace(row, key=f"{row.key}/turn2", number=2, parent=place, reward=reward)
        for place, (row, reward) in enumerate(zip(alone.attempts, (0.0, 1.0, 0.0, 0.5), strict=True))
    ]
    recipe = replace(alone.recipe, environment=Chatty())
    batch = experience_of([*alone.attempts, *later], recipe, alone.seconds, 0, torch.device("cpu"))
    said = [text for _, text in preflight(batch, 0.5)]
    assert said[0].startswith("preflight: 8 completions in 4 episodes of 2 prompts: 1 to 4 tokens")
    assert said[1] == "preflight: reward 0.62 on average, from 0.00 to 1.00; 1 of 2 groups have a signal to learn from"
    # Each episode earns 1, half of it per turn, and its last turn was cut off.
    halves = [replace(row, reward=0.5) for row in alone.attempts]
    cut = [replace(row, reward=0.5, completion=replace(row.completion, finish_reason=CUT)) for row in later]
    batch = experience_of([*halves, *cut], recipe, alone.seconds, 0, torch.device("cpu"))
    said = [text for _, text in preflight(batch, 0.5)]
    assert "0% ended by themselves, 100% were truncated at 9" in said[0]
    assert "100% of the episodes were truncated" in said[2]
    assert "no group has a signal to learn from: the policy solves these prompts already" in said[-1]
    # In a run, some episodes have more turns than others.
    data = rollouts(environment=Chatty(max_turns=3), sampling=SamplingParams(max_new_tokens=20))
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        fit(tmp_path, grpo(model_path, verifiers=[]), 1, data, callbacks=[HealthCheck(prompts=2)])
    assert re.search(r"preflight: \d+ completions in 8 episodes of 2 prompts", caplog.text)
    assert "2 of 2 groups have a signal" in caplog.text


@llama_alone
def test_the_health_check_runs_before_the_first_step_and_changes_nothing(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = fit(tmp_path, grpo(model_path), 2)
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        checked = fit(tmp_path, grpo(model_path), 2, callbacks=[HealthCheck(prompts=2)])
    assert same(plain, checked)
    assert "preflight: 8 completions of 2 prompts" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        fit(tmp_path, grpo(model_path), 1, callbacks=[HealthCheck(prompts=0)])
    assert "preflight" not in caplog.text


@llama_alone
@pytest.mark.parametrize(("per_step", "sampled"), [(1, "1 prompt:"), (8, "4 prompts:")])
def test_the_preflight_samples_no_more_prompts_than_a_step_has(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, per_step: int, sampled: str
) -> None:
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        fit(tmp_path, grpo(model_path), 1, rollouts(prompts_per_step=per_step), callbacks=[HealthCheck()])
    assert f"completions of {sampled}" in caplog.text


@llama_alone
@pytest.mark.parametrize(("patience", "alarmed"), [(2, True), (5, False)])
def test_alarms_ring_after_so_many_steps_in_a_row(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, patience: int, alarmed: bool
) -> None:
    data = rollouts(sampling=SamplingParams(max_new_tokens=2))
    module = grpo(model_path, verifiers=[Constant("never")])
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path, module, 3, data, callbacks=[HealthCheck(prompts=0, patience=patience)])
    truncated = f"were truncated in each of the last {patience} steps: the text is random, with a mean log-prob of -"
    assert (truncated in caplog.text) is alarmed
    assert (f"in the last {patience} steps, so there was nothing to learn" in caplog.text) is alarmed
    caplog.clear()
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path, grpo(model_path), 3, data, callbacks=[HealthCheck(prompts=0, patience=patience, truncated=1.0)])
    assert "truncated" not in caplog.text


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([10, 10, 41, 41], "much longer: 41 tokens on average, after 10 in the first 2 steps"),
        ([10, 10, 2, 2], "much shorter: 2 tokens on average, after 10"),
        ([10, 10, 39, 39, 3, 3], None),
        ([10, 10, 41, 10, 41, 10], None),
        ([10, 50, 100, 100], None),
    ],
)
def test_lengths_far_from_the_start_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lengths: list[int], said: str | None
) -> None:
    metrics = {"completion/truncated": 0.0, "reward/groups_without_signal": 0.0}
    lightning, module = trainer(tmp_path, 1), pl.LightningModule()

    def watch(check: HealthCheck, lengths: list[int]) -> None:
        for length in lengths:
            logged = metrics | {"completion/length_mean": float(length)}
            end = StepEnd(0, logged, experience([(1.0, STOP), (0.0, STOP)]))
            check.on_step_end(lightning, module, end)

    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        watch(HealthCheck(patience=2), lengths)
        assert (said is None and not caplog.text) or (said or "") in caplog.text
        caplog.clear()
        watch(HealthCheck(patience=2, length_change=100.0), lengths)
        assert not caplog.text
        # The start is remembered over a resume, and how long it has been.
        for place in (2, 3):
            first, second = HealthCheck(patience=2), HealthCheck(patience=2)
            watch(first, lengths[:place])
            second.load_state_dict(first.state_dict())
            watch(second, lengths[place:])
            assert (said is None and not caplog.text) or (said or "") in caplog.text
            caplog.clear()


def test_alarms_count_on_over_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = {"completion/truncated": 1.0, "reward/groups_without_signal": 1.0, "completion/length_mean": 2.0}
    lightning, module = trainer(tmp_path, 1), pl.LightningModule()
    end = StepEnd(0, metrics, experience([(0.0, CUT), (0.0, CUT)]))
    checks = [HealthCheck(patience=2), HealthCheck(patience=2)]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        checks[0].on_step_end(lightning, module, end)
        assert not caplog.text
        checks[1].load_state_dict(checks[0].state_dict())
        checks[1].on_step_end(lightning, module, end)
    assert "truncated in each of the last 2 steps" in caplog.text
    assert "no group had completions of different rewards in the last 2 steps" in caplog.text


def test_callbacks_forget_the_run_before_unless_it_continues(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    used: list[pl.Callback] = [
        HealthCheck(prompts=0), StopWhen(reward=0.0, patience=9), AdaptiveKL(), ReferenceSync(every_n_steps=1),
        PolicyExport(best=True), RunSummary(validate_first=False),
    ]  # fmt: skip

    class Begun(pl.Callback):
        """Keeps what they know when a fit begins."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.states = copy.deepcopy([callback.state_dict() for callback in used])

    begun = Begun()
    options: dict[str, Any] = {"callbacks": [*used, begun], "limit_val_batches": 1, "val_check_interval": 1}
    one, module, data = trainer(tmp_path, 2, **options), grpo(tiny_model("llama"), beta=0.05), rollouts()
    one.fit(module, datamodule=data)
    fresh, learned = begun.states, [callback.state_dict() for callback in used]
    assert not any(now == before for now, before in zip(learned, fresh, strict=True))
    one.fit_loop.epoch_loop.max_steps = 3
    one.fit(module, datamodule=data)
    assert begun.states == learned, "the same trainer continues"
    another = grpo(tiny_model("llama"), beta=0.07)
    fit(tmp_path, another, 1, **options)
    assert begun.states == fresh
    # By hand: the first KL is 0, so the weight falls by a fifth of the gain, from what is configured.
    assert another.beta == pytest.approx(0.07 * (1 - 0.2 * 0.1))


@pytest.mark.parametrize(
    "options",
    [
        {"length_change": 1.0}, {"patience": 0}, {"prompts": -1}, {"truncated": -0.1}, {"truncated": 1.1},
        {"max_sampler_gap": 0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=rf"HealthCheck\.{name}: must be .*, not {value}"):
        HealthCheck(**options)


class ShiftedEngine(InProcessEngine):
    """Reports log-probs that are off, as a cache that goes wrong makes them."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def generate(self, *args: Any) -> list[Completion]:
        completions = super().generate(*args)
        return [replace(each, logprobs=[logprob - self.shift for logprob in each.logprobs]) for each in completions]


@pytest.mark.parametrize(
    ("shift", "options", "precision", "said"),
    [
        (0.1, {}, "32-true", r"differ by 0\.1 nats per token, above 0\.05, .*: set model\.policy\.without to "),
        (0.1, {}, "bf16-mixed", None),
        (0.1, {"max_sampler_gap": 0.15}, "32-true", None),
        (
            0.4,
            {},
            "bf16-mixed",
            r"above 0\.2, .*: set trainer\.precision .*raise health_check\.max_sampler_gap",
        ),
        (0.0, {"max_sampler_gap": 1e-12}, "32-true", "above 1e-12"),
    ],
)
def test_a_run_whose_sampling_and_training_disagree_stops_before_its_first_step(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    shift: float, options: dict[str, float], precision: Any, said: str | None,
) -> None:  # fmt: skip
    module, data = grpo(tiny_model("llama")), rollouts(engine=ShiftedEngine(shift))
    check = HealthCheck(prompts=2, **options)
    with (
        caplog.at_level(logging.INFO, "grpo_lightning"),
        nullcontext() if said is None else pytest.raises(RunError, match=said),
    ):
        fit(tmp_path, module, 1, data, callbacks=[check], precision=precision)
    assert module.trainer.global_step == (said is None)
    assert "preflight: sampling and training differ by " in caplog.text


def test_the_preflight_of_ppo_speaks_of_rewards_and_not_of_groups(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = PPOModule(policy=PolicyConfig(path=tiny_model("llama")), verifiers=[LetterVerifier()])
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        fit(tmp_path, module, 1, callbacks=[HealthCheck(prompts=2)])
    assert "preflight: 8 completions of 2 prompts" in caplog.text
    assert "different rewards" in caplog.text
    assert "groups" not in caplog.text
    one_a_prompt = [(0.0, STOP), (1.0, STOP), (1.0, STOP)]
    ((_, _), (_, said), *more) = preflight(experience(one_a_prompt, group_size=1), 0.5, groups=False)
    assert said.endswith("2 different rewards among all of them to learn from")
    assert not more, "one completion a prompt is enough where groups are nothing"
    silent = preflight(experience([(0.0, STOP)] * 2), 0.5, groups=False)[-1][1]
    assert silent.startswith("preflight: all rewards are the same: 0 of 2 are correct: take easier prompts")


def test_the_preflight_of_a_run_that_learns_from_a_teacher_alone_does_not_miss_a_signal(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"policy": PolicyConfig(path=tiny_model("llama")), "verifiers": [Constant("never")]}
    for coefficient, said in ((0.0, "; the run does not learn from it"), (0.5, "0 of 2 groups have a signal to learn")):
        module = DistillationModule(**options, teacher="reference", reward_coef=coefficient)
        caplog.clear()
        with caplog.at_level(logging.INFO, "grpo_lightning"):
            fit(tmp_path, module, 1, callbacks=[HealthCheck(prompts=2)])
        assert said in caplog.text
        assert ("no group has a signal" in caplog.text) is (coefficient > 0)
        assert "all rewards are the same" not in caplog.text


@llama_alone
def test_the_summary_tells_before_and_after_and_where_everything_is(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The last of three steps lies behind the last validation of the loop's own.
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 2}
    plain = fit(tmp_path, grpo(model_path), 3, **options)
    watch = Watch()
    capsys.readouterr()
    # Whatever their order, the card is written after the last validation.
    told = fit(tmp_path, grpo(model_path), 3, callbacks=[PolicyExport(), RunSummary(), watch], **options)
    assert same(plain, told), "validating first leaves no trace"
    out = capsys.readouterr().out
    (before,) = trainer(tmp_path, 1, limit_val_batches=1.0).validate(grpo(model_path), datamodule=rollouts())
    last = f"{watch.logged[-1]['reward/mean']:.3f}"
    module = grpo(model_path)
    fit(tmp_path, module, 3)
    (after,) = trainer(tmp_path, 1, limit_val_batches=1.0).validate(module, datamodule=rollouts())
    assert f"accuracy    {before['val/accuracy']:.3f} -> {after['val/accuracy']:.3f}" in out
    assert f"reward      {watch.logged[0]['reward/mean']:.3f} -> {last}" in out
    assert f"policy      {tmp_path}/policy" in out
    (card,) = [line for line in (tmp_path / "policy/README.md").read_text().splitlines() if "after training" in line]
    assert card.startswith(f"| validation accuracy after training | {after['val/accuracy']:.3f} ")
    assert card.endswith("after 3 optimizer steps |")
    watch = Watch()
    fit(tmp_path, grpo(model_path), 1, callbacks=[RunSummary(validate_first=False), watch], **options)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy")]
    first, _, last = line.removeprefix("accuracy").split()[:3]
    assert first == last, "without the validation before the first step there is one value only"


class LogsOne(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("mine", 1.0)


@llama_alone
def test_the_first_validation_does_not_end_a_run_that_watches_a_curve_of_training(
    model_path: str, tmp_path: Path
) -> None:
    watched = ("reward/mean", "reward/LetterVerifier", "mine")
    stopping = [EarlyStopping(name, mode="max", patience=1, check_on_train_epoch_end=False) for name in watched]
    watch = Watch()
    options: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 1}
    module = grpo(model_path, verifiers=[LetterVerifier(), Constant("never")])
    fit(tmp_path, module, 6, callbacks=[LogsOne(), *stopping, RunSummary(), watch], **options)
    assert len(watch.logged) == 2, "the constant one has not risen after the second step"
    # What validation logs has been logged by then.
    with pytest.raises(RuntimeError, match="val/mine"):
        fit(tmp_path, grpo(model_path), 1, callbacks=[EarlyStopping("val/mine"), RunSummary()], **options)


def _shorter(completion: str, answer: str) -> float:
    return -(len(completion) + 1) / 7


@llama_alone
def test_rewards_that_tell_nothing_correct_are_summed_up_by_their_mean(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 1, "enable_checkpointing": True}

    def run(steps: int, **more: Any) -> tuple[RunCheckpoint, str]:
        keep = RunCheckpoint(save_top_k=9)
        capsys.readouterr()
        callbacks = [RunSummary(), PolicyExport(best=True), keep]
        fit(tmp_path, grpo(model_path, verifiers=_shorter), steps, callbacks=callbacks, **options, **more)
        return keep, capsys.readouterr().out

    keep, out = run(2)
    module = grpo(model_path, verifiers=_shorter)
    (before,) = trainer(tmp_path, 1, limit_val_batches=1.0).validate(module, datamodule=rollouts())
    (line,) = [line for line in out.splitlines() if line.startswith("val reward")]
    assert f"{before['val/reward']:.3f} -> " in line
    assert "(val/reward, first -> last)" in line
    assert "accuracy" not in out
    card = (tmp_path / "policy_best/README.md").read_text()
    assert f"validation mean reward before training | {before['val/reward']:.3f} (95 % interval" in card
    assert keep.monitor == "val/reward"
    scores = {float(score) for score in keep.best_k_models.values()}
    assert len(keep.best_k_models) == 2
    assert max(scores) < 0
    # A resumed run ranks its checkpoints with those before.
    again, _ = run(3, ckpt_path=keep.last_model_path)
    assert keep.best_k_models.keys() < again.best_k_models.keys()
    tested = trainer(tmp_path, 1, callbacks=[RunSummary()])
    capsys.readouterr()
    (found,) = tested.test(module, datamodule=rollouts())
    assert f"mean reward: {found['test/reward']:.3f} (95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "files"),
    [({}, {"adapter_config.json"}), ({"merged": True}, {"config.json"}), ({"enabled": False}, set())],
)
def test_export_writes_what_it_is_asked_to(
    tiny_model: Callable[[str], str], tmp_path: Path, options: dict[str, bool], files: set[str]
) -> None:
    fit(tmp_path, grpo(tiny_model("lfm2"), lora=LoRAConfig(r=2)), 1, callbacks=[PolicyExport(**options)])
    written = {path.name for path in (tmp_path / "policy").glob("*")}
    assert files <= written
    assert bool(written) is bool(files)
    if options.get("merged"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def test_the_policy_of_the_best_validation_is_exported_whole(
    tiny_model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [0.1, 0.3, 0.3, 0.2]

    class Accuracies(pl.Callback):
        """Says what each validation found: a script in place of a measurement."""

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            value = torch.tensor(accuracies[trainer.global_step - 1])
            pl_module._evaluation.compute = lambda: {"accuracy": value}

    def run(steps: int, **options: Any) -> RunCheckpoint:
        keep = RunCheckpoint()
        callbacks = [Accuracies(), PolicyExport(best=True), keep]
        fit(
            tmp_path, grpo(tiny_model("llama")), steps, callbacks=callbacks, enable_checkpointing=True,
            limit_val_batches=1, val_check_interval=1, **options,
        )  # fmt: skip
        return keep

    def best() -> dict[str, torch.Tensor]:
        return dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy_best").state_dict())

    keep = run(3)
    trained = torch.load(keep.best_model_path, weights_only=True)
    assert trained["global_step"] == 2
    exported = best()
    for name, tensor in trained["state_dict"].items():
        assert torch.equal(exported[name.removeprefix("policy.model.")], tensor)
    assert not same(exported, dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()))
    # A resumed run knows what the best was; a better one takes its place, and nothing is left beside it.
    run(4, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert same(exported, best())
    accuracies[3] = 0.4
    run(4, ckpt_path=keep.best_model_path)
    assert not same(exported, best())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "policy", "policy_best"}
    # A folder that could not be written whole leaves the one before it.
    accuracies[:] = [0.9] * 4
    now = best()
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", _full_disk)
    with pytest.raises(OSError, match="no space"):
        run(1)
    assert same(now, best())
    # Nor does one after a run that ended just when the two were changing places.
    (tmp_path / "policy_best").rename(tmp_path / ".policy_best.old")
    with pytest.raises(OSError, match="no space"):
        run(1)
    monkeypatch.undo()
    assert same(now, best())


def test_rewards_that_show_late_that_they_tell_nothing_correct_are_ranked_anew(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    found: dict[int, float] = {1: 1.0, 2: 0.2, 3: 0.3, 4: 0.25}  # the accuracy is 1 after the first step, then none

    class Validating(pl.Callback):
        step: int | None = None

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.step = trainer.global_step

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.step = None

    def run(steps: int, **options: Any) -> RunCheckpoint:
        validating, keep = Validating(), RunCheckpoint()

        def reward(completion: str, answer: str) -> float:
            return _shorter(completion, answer) if validating.step is None else found[validating.step]

        fit(
            tmp_path, grpo(tiny_model("llama"), verifiers=reward), steps, enable_checkpointing=True,
            callbacks=[validating, PolicyExport(best=True), keep], limit_val_batches=1, val_check_interval=1, **options,
        )  # fmt: skip
        return keep

    def best() -> tuple[list[int], float]:
        """The steps of the best checkpoints, and their reward; ``policy_best`` has the same weights."""
        (path,) = keep.best_k_models
        assert path == keep.best_model_path == keep.kth_best_model_path
        trained = torch.load(path, weights_only=True)["state_dict"]
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy_best").state_dict()
        assert all(torch.equal(exported[name.removeprefix("policy.model.")], trained[name]) for name in trained)
        steps = [int(file.stem.removeprefix("best-step")) for file in (tmp_path / "checkpoints").glob("best*")]
        return steps, round(float(keep.best_model_score), 6)

    keep = run(1)
    assert (keep.monitor, best()) == ("val/accuracy", ([1], 1.0))
    keep = run(3, ckpt_path=keep.last_model_path)
    assert (keep.monitor, best()) == ("val/reward", ([3], 0.3))
    # A resumed run knows by which curve: the fourth is not the first of its kind.
    keep = run(4, ckpt_path=keep.last_model_path)
    assert (keep.monitor, best()) == ("val/reward", ([3], 0.3))


def _full_disk(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


def test_without_the_option_no_best_policy_is_exported(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 1}
    fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[PolicyExport()], **options)
    assert not (tmp_path / "policy_best").exists()


@llama_alone
def test_predictions_hold_every_completion_with_its_verdict(model_path: str, tmp_path: Path) -> None:
    data = rollouts(val_batch_size=10, pass_at_k=[2])
    trainer(tmp_path, 1, callbacks=[PredictionWriter("out.jsonl")]).predict(grpo(model_path), datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 24 * 3, "one greedy and two sampled completions of each of 24 prompts"
    assert all(row["answer"] == "e" and row["reward"] is not None and row["tokens"] >= 1 for row in rows)


@llama_alone
def test_the_progress_bar_counts_optimizer_steps_and_shows_reward_and_accuracy(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = StepProgressBar(log_interval_s=0.0)
    options = {"enable_progress_bar": True, "limit_val_batches": 1, "val_check_interval": 1}
    fit(tmp_path, grpo(model_path, updates_per_rollout=2), 4, callbacks=[bar], **options)
    err = capsys.readouterr().err
    assert "4/4" in err
    assert "reward=" in err.split("4/4")[-1]
    assert "val_accuracy=" in err.split("4/4")[-1]
    assert "tokens/s=" in err.split("4/4")[-1]
    # In a log every update is a line, with the time left in it.
    lines = [line for line in err.splitlines() if line.startswith("train:")]
    assert len(lines) >= 3
    assert "\r" not in "".join(lines)
    assert re.search(r"train:  50% 2/4 \[\d\d:\d\d<\d\d:\d\d, .*reward=0\.\d{3}, ", "\n".join(lines))
    trainer(tmp_path, 1, callbacks=[bar], enable_progress_bar=True).test(grpo(model_path), datamodule=rollouts())
    assert "test: 100%" in capsys.readouterr().err
    # Without max_steps, the epochs say how many there will be.
    options = {"enable_progress_bar": True, "max_epochs": 2, "limit_train_batches": 2, "val_check_interval": None}
    fit(tmp_path, grpo(model_path, updates_per_rollout=2), -1, callbacks=[bar], **options)
    assert "8/8" in capsys.readouterr().err


@llama_alone
@pytest.mark.parametrize(("subcommand", "stem"), [("test", "test_results"), ("predict", "predictions")])
def test_what_more_ranks_wrote_before_is_removed(model_path: str, tmp_path: Path, subcommand: str, stem: str) -> None:
    for name in (f"{stem}.rank1.jsonl", f"{stem}.rank12.jsonl", "other.rank1.jsonl", f"{stem}.jsonl"):
        (tmp_path / name).write_text("of an earlier one\n")
    one = trainer(tmp_path, 1, callbacks=[PredictionWriter()])
    getattr(one, subcommand)(grpo(model_path), datamodule=rollouts(task=ToyTask(rows=4)))
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == sorted(["other.rank1.jsonl", f"{stem}.jsonl"])
    assert len((tmp_path / f"{stem}.jsonl").read_text().splitlines()) == 4
