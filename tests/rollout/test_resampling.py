"""Dynamic sampling: what is replaced, by what, and that the step is right: on any ranks, and after any resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.advantages import GDPO
from grpo_lightning.algorithms import PPOModule, SFTModule
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.constraints import Regex
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, RefinementConfig, ResampleConfig, SamplingParams
from grpo_lightning.rollout.engines.base import OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.loader import TrainLoader
from grpo_lightning.rollout.resampling import Places, is_silent
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Sample, Verdict
from grpo_lightning.verifiers import Verifier
from tests.rollout.test_loader import encoded
from tests.toy import CopyEngine, LetterVerifier, ToyTask, Watch, fit, grpo, rollouts, same, sgd


class Even(Verifier):
    """Right or wrong, each about as often."""

    def __init__(self, slow: bool = False) -> None:
        super().__init__(accept_truncated=True)
        self.slow = slow

    def verify(self, sample: Sample) -> Verdict:
        return Verdict(correct=sum(map(ord, sample.completion)) % 2 == 0, format_valid=True)


class Strict(Verifier):
    """Accepts nothing at prompts with an even number, so that these are silent."""

    def __init__(self) -> None:
        super().__init__(accept_truncated=True)

    def verify(self, sample: Sample) -> Verdict:
        number = int(sample.prompt[-1]["content"].split()[1].lstrip("ab"))  # type: ignore[index, call-overload]
        return Verdict(correct=number % 2 == 1 and sum(map(ord, sample.completion)) % 2 == 0, format_valid=True)


class JoiningEngine(InProcessEngine):
    """Notes for each call how many completions had been handed over, of how many, whenever rows joined."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, int]]] = []

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        joined: list[tuple[int, int]] = []
        asked, handed = len(requests), 0
        self.calls.append(joined)

        def note(numbers: list[int], completions: list[Completion]) -> Sequence[Request]:
            nonlocal asked, handed
            handed += len(numbers)
            further = [] if on_finish is None else on_finish(numbers, completions)
            if further:
                joined.append((handed, asked))
            asked += len(further)
            return further

        return super().generate(requests, sampling, note if on_finish else None)


def silent_of(rewards: Sequence[float]) -> bool:
    return is_silent([attempt(reward) for reward in rewards])


def attempt(reward: float) -> Attempt:
    verdict = Verdict(reward == 1, True, error="gone" if math.isnan(reward) else None)
    return Attempt(
        Prompt([]), [2], completion=Completion([1], "", FinishReason.STOP, [0.0], [0.0]), verdict=verdict, reward=reward
    )


def test_a_group_is_silent_if_no_two_rewards_differ() -> None:
    assert all(map(silent_of, ([1.0, 1.0], [0.5, 0.5, math.nan], [math.nan, math.nan], [1.0, math.nan])))
    assert not any(map(silent_of, ([1.0, 0.0], [math.nan, 0.5, 1.0])))


@given(data=st.data())
def test_which_groups_stay_does_not_depend_on_when_completions_end(data: st.DataObject) -> None:
    places, rounds, size = 3, data.draw(st.integers(1, 3)), 2
    rewards = {
        (place, number): data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
        for place in range(places)
        for number in range(rounds + 1)
    }
    made = Places([range(place * size, (place + 1) * size) for place in range(places)], rounds)
    group_of = {row: (place, 0, row - rows.start) for place, rows in enumerate(made.rows) for row in rows}
    attempts: dict[int, Attempt] = {}
    while not made.settled:
        waiting = sorted(group_of.keys() - attempts.keys())
        for row in data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True)):
            place, number, member = group_of[row]
            attempts[row] = attempt(rewards[place, number][member])
        for place, number in made.silent(attempts):
            rows = range(len(group_of), len(group_of) + size)
            group_of |= {row: (place, number, row - rows.start) for row in rows}
            made.replace(place, number, rows)
    for place in range(places):
        # By hand: the first round with a signal, else the last one.
        chain = [number for number in range(rounds + 1) if len(set(rewards[place, number])) > 1]
        last = chain[0] if chain else rounds
        assert [group_of[row][:2] for row in made.rows[place]] == [(place, last)] * size
        gone = [group_of[row][1] for row in made.replaced if group_of[row][0] == place]
        assert gone == [number for number in range(last) for _ in range(size)]


@given(rows=st.integers(1, 12), per_step=st.integers(1, 5), ranks=st.integers(1, 3), step=st.integers(0, 9))
def test_the_prompts_that_replace_others_are_the_same_on_any_ranks(
    rows: int, per_step: int, ranks: int, step: int
) -> None:
    recipe = Recipe(seed=3, resample=ResampleConfig(max_rounds=2))
    prompts = encoded(rows)
    whole = TrainLoader(prompts, per_step, recipe, 0, 1).batch(step)
    shares = [TrainLoader(prompts, per_step, recipe, rank, ranks).batch(step) for rank in range(ranks)]
    own = [prompt.answer for prompt in whole.prompts]
    assert own == [prompt.answer for prompt in TrainLoader(prompts, per_step, Recipe(seed=3), 0, 1).batch(step).prompts]
    assert len(whole.replacements) == 2
    for number in range(2):
        batch = whole.replacements[number]
        for place, (key, prompt) in enumerate(zip(batch.keys, batch.prompts, strict=True)):
            share = shares[place % ranks].replacements[number]
            assert (share.keys[place // ranks], share.prompts[place // ranks]) == (key, prompt)
    spare = [prompt.answer for batch in whole.replacements for prompt in batch.prompts]
    if rows >= 3 * per_step:
        assert len({*own, *spare}) == 3 * per_step, "no prompt is in a step twice"
    keys = [key for batch in (whole, *whole.replacements) for key in batch.keys]
    assert len({*keys}) == len(keys)


def step(path: str, folder: Path, verifier: Verifier | None = None, **options: Any) -> Experience:
    watch = Watch()
    defaults: dict[str, Any] = {"resample_silent": ResampleConfig(), "group_size": 2, "prompts_per_step": 6}
    fit(folder, grpo(path, verifiers=[verifier or Even()]), 1, rollouts(**defaults | options), callbacks=[watch])
    return watch.batches[0]


def completions(experience: Experience) -> list[tuple[str, list[int]]]:
    return [(attempt.key, attempt.completion.token_ids) for attempt in experience.attempts]


def test_silent_groups_are_replaced_while_others_decode(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path, engine = tiny_model("llama"), JoiningEngine()
    plain = step(path, tmp_path, resample_silent=None)
    made = step(path, tmp_path, engine=engine, sampling=SamplingParams(max_new_tokens=24, stop=list("acegikmoqsuwy")))
    assert any(handed < asked for handed, asked in engine.calls[0]), "rows joined those that still decoded"
    assert len(engine.calls) == 1
    groups = [made.attempts[row : row + 2] for row in range(0, 12, 2)]
    assert made.replaced
    assert not any(is_silent(group) for group in groups)
    assert all(is_silent(made.replaced[row : row + 2]) for row in range(0, len(made.replaced), 2))
    assert [attempt.key.split("/")[2].split(".")[0] for attempt in made.attempts] == [
        str(row // 2) for row in range(12)
    ]
    made = step(path, tmp_path)
    kept = dict(completions(plain))
    assert all(kept[key] == ids for key, ids in completions(made) if key in kept), "other groups are as without"
    for other in (
        step(path, tmp_path, verifier=Even(slow=True)),  # a second round
        step(path, tmp_path, rollout_rows_at_once=4),
    ):
        assert completions(other) == completions(made)
        assert {a.key for a in other.replaced} == {a.key for a in made.replaced}
    more = step(path, tmp_path, verifier=Strict())
    fewer = step(path, tmp_path, verifier=Strict(), resample_silent=ResampleConfig(max_rounds=1))
    assert any(".2/" in attempt.key for attempt in more.attempts)
    assert all(".2/" not in attempt.key for attempt in [*fewer.attempts, *fewer.replaced])


def test_what_replaces_a_group_is_constrained_too(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    """And its log-probs are those among the allowed tokens: the update's own are equal."""
    pattern = "[a-d]{3,12}"
    sampling = SamplingParams(max_new_tokens=16, constraint=Regex(pattern))
    made = step(tiny_model("llama"), tmp_path, sampling=sampling)
    assert made.replaced
    sampled = [*made.attempts, *made.replaced]
    assert all(regex.fullmatch(pattern, attempt.completion.text) for attempt in sampled)
    assert len({attempt.completion.text for attempt in sampled}) > 6
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    assert made.tokens.allowed is not None
    logprobs_NT, _ = policy.logprobs(made.tokens)
    for row, attempt in enumerate(made.attempts):
        own = logprobs_NT[row, : len(attempt.completion.logprobs)].detach()
        torch.testing.assert_close(own, torch.tensor(attempt.completion.logprobs), atol=1e-4, rtol=1e-4)


def test_the_loss_is_divided_by_what_keep_says(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path = tiny_model("llama")
    changes, silent = {}, 0
    for keep in ("fill", "signal"):
        watch, module = Watch(), grpo(path, verifiers=[Strict()], optimizer=sgd, max_grad_norm=None)
        data = rollouts(
            resample_silent=ResampleConfig(1, keep), group_size=4, prompts_per_step=6  # type: ignore[arg-type]
        )  # fmt: skip
        after = fit(tmp_path, module, 1, data, callbacks=[watch])
        start = fit(tmp_path, grpo(path, verifiers=[Strict()]), 0, rollouts())
        changes[keep] = torch.cat([(after[name] - start[name]).flatten() for name in after])
        batch = watch.batches[0]
        silent = sum(is_silent(batch.attempts[row : row + 4]) for row in range(0, 24, 4))
        counted = batch.counted_N.sum()
        assert counted == (24 if keep == "fill" else 24 - 4 * silent)
        assert watch.logged[0]["resample/silent"] == pytest.approx(silent / 6)
    assert 0 < silent < 6
    torch.testing.assert_close(changes["signal"], changes["fill"] * 6 / (6 - silent), rtol=1e-3, atol=1e-7)


def test_curves_are_means_over_all_that_was_sampled(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    watch = Watch()
    data = rollouts(resample_silent=ResampleConfig(), group_size=2, prompts_per_step=6)
    fit(tmp_path, grpo(tiny_model("llama"), verifiers=[Even()]), 1, data, callbacks=[watch])
    batch, logged = watch.batches[0], watch.logged[0]
    everything = [*batch.attempts, *batch.replaced]
    tokens = sum(len(attempt.completion.token_ids) for attempt in everything)
    used = sum(len(attempt.completion.token_ids) for attempt in batch.attempts)
    groups = len(everything) // 2
    assert logged["reward/mean"] == pytest.approx(sum(a.reward for a in everything) / len(everything))
    assert logged["reward/groups_without_signal"] == pytest.approx((groups - 6) / groups)
    assert logged["resample/replaced"] == pytest.approx((groups - 6) / groups)
    assert logged["resample/used_tokens"] == pytest.approx(used / tokens)
    assert logged["total/rollout_tokens"] == tokens
    assert logged["total/train_tokens"] == used


class Gone(Verifier):
    """Breaks at some prompts, whose groups are silent."""

    def __init__(self) -> None:
        super().__init__(accept_truncated=True)

    def verify(self, sample: Sample) -> Verdict:
        if "b" in sample.prompt[-1]["content"]:  # type: ignore[index, call-overload]
            raise OSError("the checker is gone")
        return Verdict(correct=sum(map(ord, sample.completion)) % 2 == 0, format_valid=True)


def test_a_verifier_that_breaks_is_not_hidden_by_replacing_its_groups(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    watch = Watch()
    data = rollouts(resample_silent=ResampleConfig(9), group_size=4)
    module = grpo(tiny_model("llama"), verifiers=[Gone()], max_error_rate=1.0)
    fit(tmp_path, module, 1, data, callbacks=[watch])
    batch = watch.batches[0]
    assert not batch.reward_N.isnan().any(), "all of these were replaced"
    broken = sum(attempt.verdict.error is not None for attempt in batch.replaced)
    assert broken
    assert watch.logged[0]["reward/errors"] == pytest.approx(broken / (12 + len(batch.replaced)))
    with pytest.raises(Exception, match=f"a verifier broke on {broken} of {12 + len(batch.replaced)} completions"):
        fit(tmp_path, grpo(tiny_model("llama"), verifiers=[Gone()]), 1, data)


@pytest.mark.parametrize("engine", [None, CopyEngine], ids=["in process", "one step ahead"])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    tiny_model: Callable[[str], str], tmp_path: Path, engine: Callable[[], CopyEngine] | None
) -> None:
    def run(steps: int, watch: Watch, **options: Any) -> dict[str, torch.Tensor]:
        more = {} if engine is None else {"engine": engine(), "rollouts_ahead": 1}
        data = rollouts(resample_silent=ResampleConfig(), group_size=2, task=ToyTask(rows=8), **more)
        module = grpo(tiny_model("llama"), verifiers=[Even()])
        callbacks = [watch, *([RunCheckpoint(monitor=None)] if options.get("enable_checkpointing") else [])]
        return fit(tmp_path, module, steps, data, callbacks=callbacks, **options)

    whole, resumed = Watch(), Watch()
    expected = run(4, whole)
    run(2, Watch(), enable_checkpointing=True)
    got = run(4, resumed, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert same(expected, got)
    assert any(batch.replaced for batch in whole.batches)
    assert [completions(b) for b in resumed.batches] == [completions(b) for b in whole.batches[2:]]


def test_validation_is_never_resampled(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    seen: list[Experience] = []

    class Look(Watch):
        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            seen.extend([batch.single, batch.sampled])

    data = rollouts(resample_silent=ResampleConfig(), group_size=2, pass_at_k=2)
    module = grpo(tiny_model("llama"), verifiers=[Even()])
    fit(tmp_path, module, 1, data, callbacks=[Look()], limit_val_batches=1, val_check_interval=1)
    assert len(seen) == 2
    assert not any(batch.replaced for batch in seen)
    assert any(is_silent(seen[1].attempts[row : row + 2]) for row in range(0, len(seen[1]), 2))


def test_what_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"resample_silent": ResampleConfig(0)}, r"data\.resample_silent\.max_rounds: must be at least 1, not 0"),
        ({"resample_silent": ResampleConfig(1, "all")}, r"data\.resample_silent\.keep: must be fill or signal"),  # type: ignore[arg-type]
        ({"group_size": 1}, r"data\.resample_silent: no group of data\.group_size=1 has a signal"),
        ({"refinement": RefinementConfig()}, r"data\.resample_silent: replaces the groups that data\.refinement"),
    ]
    for options, text in wrong:
        with pytest.raises(ConfigError, match=text):
            rollouts(**{"resample_silent": ResampleConfig()} | options)
    path = tiny_model("llama")
    common: dict[str, Any] = {"policy": PolicyConfig(path=path), "verifiers": [LetterVerifier()]}
    for module in (PPOModule(**common), SFTModule(**common)):
        with pytest.raises(ConfigError, match=rf"data\.resample_silent: {type(module).__name__} does not compare"):
            fit(tmp_path, module, 1, rollouts(resample_silent=ResampleConfig()))
    apart = grpo(path, verifiers=[LetterVerifier(), Even()], advantage=GDPO())
    with pytest.raises(ConfigError, match=r"data\.resample_silent: goes by the combined reward, and GDPO"):
        fit(tmp_path, apart, 1, rollouts(resample_silent=ResampleConfig()))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> dict[str, Any]:
        # What the second step draws depends on the pass rates of both processes.
        shape: dict[str, Any] = {"group_size": 2, "prompts_per_step": 4, "task": ToyTask(rows=20)}
        data = rollouts(resample_silent=ResampleConfig(), curriculum="informative", **shape)
        module = grpo(tiny_model("llama"), verifiers=[Even()])
        callbacks = [RunCheckpoint(monitor=None)]
        fit(folder, module, 2, data, callbacks=callbacks, enable_checkpointing=True, **options)
        state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        return state

    one = run(tmp_path / "one")
    two = run(tmp_path / "two", devices=2, strategy="ddp_fork")
    assert one["totals"]["rollout_tokens"] == two["totals"]["rollout_tokens"]
    rates, others = (state["RolloutDataModule"]["pass_rates"] for state in (one, two))
    assert {name: column.tolist() for name, column in rates.items()} == {n: c.tolist() for n, c in others.items()}
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-3, atol=1e-4)
