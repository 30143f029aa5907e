"""Refinement: who gets another attempt, what it is told, what is learned from it, and what is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from grpo_lightning.advantages import RewardMoments
from grpo_lightning.algorithms import GRPOModule, PPOModule, passes
from grpo_lightning.algorithms.credit import credited_rewards
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, Recipe, RefinementConfig, SamplingParams
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.refinement import NO_FEEDBACK, can_be_refined, choose, follow, next_turn
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Sample, Verdict
from grpo_lightning.verifiers import MathVerifier, Verifier
from tests.tiny import tiny_tokenizer
from tests.toy import Watch, fit, grpo, half, rollouts, same, sgd, trainer

STOP, CUT = FinishReason.STOP, FinishReason.LENGTH


def attempt(
    correct: bool,
    reason: FinishReason = STOP,
    error: str | None = None,
    feedback: str = "Wrong.",
    ids: tuple[int, ...] = (30, 31, 7),
    conversation: list[int] | None = None,
) -> Attempt:
    completion = Completion(list(ids), "78", reason, [], [])
    verdict = Verdict(correct, True, feedback, error=error)
    return Attempt(Prompt([]), conversation or [], completion=completion, verdict=verdict, reward=float(correct))


KINDS = {
    "right": attempt(True), "wrong": attempt(False), "cut": attempt(False, CUT), "broken": attempt(False, error="x")
}  # fmt: skip


class Parity(Verifier):
    """About half of all completions are correct, and the feedback says so to the others."""

    def verify(self, sample: Sample) -> Verdict:
        right = sum(sample.completion.encode()) % 2 == 0
        return Verdict(right, len(sample.completion) % 3 > 0, "" if right else "The sum of the bytes is odd.")


# -- who ---------------------------------------------------------------------------------------------------------------


def test_groups_without_success_come_first_and_in_turn() -> None:
    rows = [
        *(attempt(True), attempt(False), attempt(False)),  # group 0 has a success
        *(attempt(False), attempt(False), attempt(False)),  # groups 1 and 2 have none
        *(attempt(False), attempt(False, CUT), attempt(False, error="gone")),
    ]
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # By hand: the first failures of groups 1 and 2, then the second and third of 1 (2 has no other), then group 0's.
    assert [choose(rows, groups, budget) for budget in range(1, 8)] == [
        [3], [3, 6], [3, 4, 6], [3, 4, 5, 6], [1, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6],
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["right", "wrong", "cut", "broken"]), min_size=4, max_size=24), st.integers(1, 8))
def test_only_failures_that_ended_by_themselves_are_chosen(kinds: list[str], budget: int) -> None:
    chosen = choose([KINDS[kind] for kind in kinds], [row // 4 for row in range(len(kinds))], budget)
    assert all(kinds[row] == "wrong" for row in chosen)
    assert len(chosen) == min(budget, kinds.count("wrong"))


@given(st.data())
def test_what_is_chosen_early_would_be_chosen_if_all_that_still_decode_failed(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from([*KINDS]), min_size=4, max_size=24))
    budget = data.draw(st.integers(1, 8))
    groups = [row // 4 for row in range(len(kinds))]
    known: list[Attempt | None] = [None] * len(kinds)
    chosen: set[int] = set()
    for row in data.draw(st.permutations(range(len(kinds)))):
        known[row] = KINDS[kinds[row]]
        outlook = choose([one or attempt(False) for one in known], groups, budget, chosen)
        now = choose(known, groups, budget, chosen)
        assert now == [one for one in outlook if known[one] is not None]
        assert chosen.isdisjoint(now)
        chosen.update(now)
    assert all(kinds[row] == "wrong" for row in chosen)
    assert len(chosen) == min(budget, kinds.count("wrong"))
    # A group that turns out to have a success may have lost its first failures to what was chosen before that.
    for group in (
        one for one in set(groups) if {kinds[row] for row in range(len(kinds)) if groups[row] == one} == {"wrong"}
    ):
        failures = [row for row, kind in enumerate(kinds) if groups[row] == group and kind == "wrong"]
        own = sorted(row for row in chosen if groups[row] == group)
        assert own == failures[: len(own)], "the first in the group, not the shortest"


# -- what it is told ---------------------------------------------------------------------------------------------------


def test_the_next_turn_is_the_rendered_chat_with_the_sampled_tokens_in_it() -> None:
    tokenizer = tiny_tokenizer()
    user = [{"role": "user", "content": "2 + 2?"}]
    prompt = tokenizer.encode(tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True))
    failed = attempt(False, feedback="No.", conversation=prompt)
    ids = next_turn(tokenizer, failed, "{feedback} Again.", terminators=[7, 2])
    said = tokenizer.decode(failed.completion.token_ids[:-1])
    chat = [*user, {"role": "assistant", "content": said}, {"role": "user", "content": "No. Again."}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ids[: len(prompt) + 2] == [*prompt, 30, 31]
    # Ended by a stop string, without a terminator of its own: the template's is put behind it all the same.
    cut = attempt(False, feedback="No.", ids=(30, 31), conversation=prompt)
    assert next_turn(tokenizer, cut, "{feedback} Again.", [7, 2]) == ids
    # Unless verifiers read it, the stop string is no part of what was said.
    ids_with_stop = (30, 31, *tokenizer.encode("\n\nQuestion:", add_special_tokens=False))
    cut = attempt(False, feedback="No.", ids=ids_with_stop, conversation=prompt)
    assert next_turn(tokenizer, cut, "{feedback} Again.", [7, 2]) == ids
    silent = attempt(False, feedback="", conversation=prompt)
    assert NO_FEEDBACK in tokenizer.decode(next_turn(tokenizer, silent, "{feedback}", [7, 2]))
    for mode, under in (("in_context", None), ("distill", prompt)):
        turn = follow(tokenizer, failed, 5, RefinementConfig(mode=mode, template="{feedback} Again."), [7, 2])
        assert (turn.conversation, turn.trained_under) == (ids, under)
        assert (turn.number, turn.parent, turn.key) == (2, 5, "/attempt2")
        assert turn.prompt_end == tokenizer.decode(ids)[-64:]
        assert turn.prompt_end.endswith("<|im_start|>assistant\n")


@settings(max_examples=100, deadline=None)
@given(
    gold=st.integers(10_000, 10**9),
    wrong=st.integers(0, 9_999),
    form=st.sampled_from(["#### {}", "{}", "\\boxed{{{}}}"]),
)
def test_the_gold_answer_never_reaches_the_second_turn(gold: int, wrong: int, form: str) -> None:
    tokenizer = tiny_tokenizer()
    verdict = MathVerifier().verify(Sample("", form.format(wrong), str(gold)))
    said = Completion([30, 7], "a", STOP, [], [])
    failed = Attempt(Prompt([], answer=str(gold)), [1], completion=said, verdict=verdict, reward=0.0)
    text = tokenizer.decode(next_turn(tokenizer, failed, RefinementConfig().template, [7]))
    assert str(gold) not in text


# -- what is learned ---------------------------------------------------------------------------------------------------


def step(
    folder: Path, path: str, refinement: RefinementConfig | None, **options: Any
) -> tuple[Experience, dict[str, torch.Tensor], Watch]:
    """One step of SGD with learning rate 1: the batch, minus the change of the weights, and the log."""
    watch = Watch()
    data = rollouts(refinement=refinement, prompts_per_step=3, group_size=4, sampling=SamplingParams(max_new_tokens=80))
    module = grpo(path, verifiers=[Parity(accept_truncated=True)], max_grad_norm=None, optimizer=sgd, **options)
    after = fit(folder, module, 1, data, callbacks=[watch])
    before = {f"policy.model.{name}": p for name, p in AutoModelForCausalLM.from_pretrained(path).named_parameters()}
    return watch.batches[0], {name: before[name] - tensor for name, tensor in after.items()}, watch


def naive(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logprobs = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def split(batch: Any, row: int) -> tuple[list[int], list[int]]:
    ids, prompt = batch.tokens.ids_NL[row].tolist(), int(batch.tokens.prompt_lengths_N[row])
    return ids[:prompt], ids[prompt : prompt + int(batch.tokens.completion_lengths_N[row])]


def later(batch: Experience) -> list[int]:
    """The rows of the attempts that follow others."""
    return list(range(batch.first, len(batch)))


def group_advantage(rewards: list[float], own: int, std: bool) -> float:
    if len(rewards) < 2 or max(rewards) == min(rewards):
        return 0.0
    mean = sum(rewards) / len(rewards)
    spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5 + 1e-4
    return (rewards[own] - mean) / (spread if std else 1.0)


@pytest.mark.parametrize("mode", ["in_context", "distill"])
def test_the_gradient_is_that_of_the_formula(model_path: str, tmp_path: Path, mode: Any) -> None:
    config = RefinementConfig(mode=mode, budget=3, gamma=0.8)
    batch, found, _ = step(tmp_path, model_path, config)
    attempts, second = batch.attempts, later(batch)
    assert any(attempts[row].verdict.correct for row in second), "or nothing is tested"
    rewards = [attempt.reward for attempt in attempts]
    prompt_of = list(range(len(batch)))
    for row in range(len(batch)):
        parent = attempts[row].parent
        prompt_of[row] = row // 4 if parent is None else prompt_of[parent]
        if mode == "in_context" and parent is not None:
            rewards[parent] = max(rewards[parent], 0.8 * rewards[row])
    model = AutoModelForCausalLM.from_pretrained(model_path)
    terms = []
    for row, one in enumerate(attempts):
        first = row < 12
        mates = [other for other in range(12) if other // 4 == prompt_of[row]]
        same_prompt = [other for other in second if prompt_of[other] == prompt_of[row]]
        if mode == "in_context":
            mates = mates if first else same_prompt
        else:
            mates += [other for other in same_prompt if attempts[other].verdict.correct]
            if row not in mates:
                continue
        own = mates.index(row)
        advantage = group_advantage([rewards[mate] for mate in mates], own, std=mode == "in_context" or max(mates) < 12)
        logprobs = naive(model, *split(batch, row))
        if one.trained_under is None:
            terms.append(advantage * logprobs.mean())
        else:
            probs = logprobs.exp()
            terms.append(advantage * (probs / (probs + 0.1)).mean())
    (-torch.stack(terms).sum() / len(terms)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[f"policy.model.{name}"], parameter.grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [GRPOModule, PPOModule])
def test_an_attempt_that_another_follows_does_not_run_by_itself(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: type[OnlineModule]
) -> None:
    ran: list[int] = []
    original = passes.microbatches

    def spy(*args: Any) -> Any:
        parts = original(*args)
        if torch.is_grad_enabled():  # of the update, and not of the passes before it
            ran[-1] += sum(part.real_tokens for part in parts)
        return parts

    monkeypatch.setattr(passes, "microbatches", spy)
    data = rollouts(
        refinement=RefinementConfig(budget=4), sampling=SamplingParams(max_new_tokens=80), prompts_per_step=3
    )
    trained, batches = [], []
    for shares in (True, False):
        ran.append(0)
        policy = PolicyConfig(path=model_path, without=[] if shares else ["shared_prompts"])
        module = algorithm(
            policy, [Parity(accept_truncated=True)], beta=0.1, max_grad_norm=None, updates_per_rollout=1, optimizer=sgd
        )
        watch = Watch()
        trained.append(fit(tmp_path, module, 1, data, callbacks=[watch]))
        batches += watch.batches
    # All count here, for beta is above 0, and each parent's row is saved; perhaps more, where attempts are alike.
    parents = {batches[0].attempts[row].parent for row in later(batches[0])}
    saved = batches[0].tokens.lengths_N[sorted(parent for parent in parents if parent is not None)].sum()
    assert 0 < saved <= ran[1] - ran[0]
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], atol=5e-5, rtol=1e-3)
    assert not same(*trained)


class SlowParity(Parity):
    slow = True


@pytest.mark.parametrize(
    ("model_path", "rows_at_once", "verifier"),
    half(["llama", "lfm2"], [None, 8], [Parity(accept_truncated=True), SlowParity(accept_truncated=True)]),
    indirect=["model_path"],
)
def test_the_budget_is_spent_whenever_verdicts_come(
    model_path: str, tmp_path: Path, verifier: Verifier, rows_at_once: int | None
) -> None:
    watch = Watch()
    data = rollouts(
        refinement=RefinementConfig(budget=2, attempts=2), sampling=SamplingParams(max_new_tokens=80),
        prompts_per_step=3, group_size=8, rollout_rows_at_once=rows_at_once,
    )  # fmt: skip
    fit(tmp_path, grpo(model_path, verifiers=[verifier]), 1, data, callbacks=[watch])
    batch = watch.batches[0]
    rounds = [[row for row, one in enumerate(batch.attempts) if one.number == number] for number in (1, 2, 3)]
    assert sum(map(len, rounds)) == len(batch)
    for before, after in pairwise(rounds):
        attempts = [batch.attempts[row] for row in before]
        failures = [row for row in before if can_be_refined(batch.attempts[row])]
        parents = [batch.attempts[row].parent for row in after]
        assert set(parents) <= set(failures)
        assert len(parents) == len(set(parents)) == min(6, len(failures))
        assert parents == sorted(parents)
        assert all(batch.attempts[row].group == batch.attempts[batch.attempts[row].parent].group for row in after)
        if verifier.slow and rows_at_once is None:
            chosen = choose(attempts, [one.group for one in attempts], 6)
            assert parents == [before[place] for place in chosen]
    assert rounds[2] or not any(can_be_refined(batch.attempts[row]) for row in rounds[1])


def test_second_attempts_are_trained_under_what_the_mode_says(model_path: str, tmp_path: Path) -> None:
    for mode in ("in_context", "distill"):
        batch, _, _ = step(tmp_path, model_path, RefinementConfig(mode=mode, budget=2))
        tokenizer = Policy(PolicyConfig(path=model_path)).tokenizer
        assert later(batch)
        for row in later(batch):
            trained_under, completion = split(batch, row)
            one = batch.attempts[row]
            parent = one.parent
            prompt, said = split(batch, parent)
            assert completion == one.completion.token_ids
            assert one.group == batch.attempts[parent].group
            # In context they are a group per round; distilled, they join the prompt's.
            assert batch.group_N[row] == parent // 4 + (0 if mode == "distill" else 3)
            assert batch.distilled_N[row] == (mode == "distill")
            assert batch.scored_N[row] == (mode == "in_context" or one.verdict.correct)
            assert one.conversation[: len(prompt) + len(said) - 1] == prompt + said[:-1]
            if mode == "distill":
                assert trained_under == prompt
            else:
                assert trained_under[: len(prompt) + len(said) - 1] == prompt + said[:-1]
                assert "The sum of the bytes is odd." in tokenizer.decode(trained_under)


def experience(rewards: list[float], parents: list[int | None], refinement: RefinementConfig | None) -> Experience:
    """Attempts at two prompts: even rows at the one, odd rows at the other."""
    rows: list[Attempt] = []
    for row, (reward, parent) in enumerate(zip(rewards, parents, strict=True)):
        before = None if parent is None else rows[parent]
        rows.append(
            replace(
                attempt(reward == 1.0, error="gone" if reward != reward else None),
                reward=reward,
                parent=parent,
                group=str(row % 2) if before is None else before.group,
                number=1 if before is None else before.number + 1,
                trained_under=[1] if before is not None and refinement and refinement.mode == "distill" else None,
            )
        )
    return experience_of(rows, Recipe("train", 2, refinement=refinement), {}, 0, torch.device("cpu"))


NAN = float("nan")


def test_credit_is_the_better_of_the_reward_and_the_discounted_next_one() -> None:
    rewards, parents = [0.0, 0.5, 1.0, 0.2, 1.0, 0.4, NAN], [None, None, None, None, 0, 1, 3]
    none = credited_rewards(experience(rewards, parents, RefinementConfig(gamma=0.0)))
    torch.testing.assert_close(none, torch.tensor(rewards), equal_nan=True)
    credited = credited_rewards(experience(rewards, parents, RefinementConfig(gamma=0.9)))
    torch.testing.assert_close(credited, torch.tensor([0.9, 0.5, 1.0, 0.2, 1.0, 0.4, NAN]), equal_nan=True)
    # Over three rounds, by hand: 0.5 * 1 = 0.5 for the second, 0.5 * 0.5 = 0.25 for the first.
    chain = credited_rewards(experience([0.0, 0.0, 0.0, 1.0], [None, None, 0, 2], RefinementConfig(gamma=0.5)))
    assert chain.tolist() == [0.25, 0.0, 0.5, 1.0]


def test_what_is_distilled_credits_nothing_and_counts_only_if_correct() -> None:
    rewards, parents = [0.0, 0.5, 0.0, 0.5, 1.0, 0.4], [None, None, None, None, 0, 1]
    distilled = experience(rewards, parents, RefinementConfig(mode="distill"))
    expected = torch.tensor([0.0, 0.5, 0.0, 0.5, 1.0, NAN])
    torch.testing.assert_close(credited_rewards(distilled), expected, equal_nan=True)
    assert distilled.scored_N.tolist() == [True] * 5 + [False]
    torch.testing.assert_close(distilled.reward_N, torch.tensor(rewards))


def test_a_distilled_attempt_changes_the_scale_of_its_own_group_alone() -> None:
    def advantages(rewards: list[float], parents: list[int | None]) -> torch.Tensor:
        rows = experience(rewards, parents, RefinementConfig(mode="distill"))
        module = grpo("none", verifiers=[Parity()])
        module.all_ranks_moments = lambda rewards_N: RewardMoments(rewards_N.mean(), rewards_N.std())
        return module.group_advantages(rows, module.step_metrics())

    # Rows 0, 2, 4 are one group, rows 1, 3, 5 the other.
    first, none = [1.0, 0.0, 0.2, 0.5, 0.0, 0.1], [None] * 6
    alone = advantages(first, none)
    assert alone[0] == pytest.approx((1.0 - 0.4) / (0.28**0.5 + 1e-4))
    torch.testing.assert_close(advantages([*first, 0.4], [*none, 1])[:6], alone)  # it failed, and counts nowhere
    joined = advantages([*first, 1.0], [*none, 1])
    torch.testing.assert_close(joined[[0, 2, 4]], alone[[0, 2, 4]])
    torch.testing.assert_close(joined[[1, 3, 5, 6]], torch.tensor([0.0, 0.5, 0.1, 1.0]) - 0.4)


def test_rows_stand_by_round_in_the_order_of_their_parents() -> None:
    # Made as they finished: the follower of row 1 before that of row 0, and one of the third round in between.
    rewards, parents = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [None, 0, 1, None, 3, None]
    rows = experience(rewards, parents, RefinementConfig(attempts=2))
    assert rows.reward_N.tolist() == pytest.approx([0.0, 0.3, 0.5, 0.1, 0.4, 0.2])
    assert [one.parent for one in rows.attempts] == [None, None, None, 0, 1, 3]
    assert [one.number for one in rows.attempts] == [1, 1, 1, 2, 2, 3]
    assert [one.reward for one in rows.last_attempts] == [0.2, 0.4, 0.5]
    assert rows.group_N.tolist() == [0, 1, 1, 2, 3, 4]


def test_without_refinement_the_rows_are_the_groups(model_path: str, tmp_path: Path) -> None:
    batch, _, _ = step(tmp_path, model_path, None)
    assert len(batch) == batch.first == 12
    assert not batch.distilled_N.any()
    assert batch.group_N.tolist() == [row // 4 for row in range(12)]
    assert batch.last_attempts == batch.attempts
    assert all(one.trained_under is one.parent is None for one in batch.attempts)


@pytest.mark.parametrize(
    "changed",
    [
        RefinementConfig(mode="distill", budget=2), RefinementConfig(budget=1), RefinementConfig(budget=2, gamma=0.1),
        RefinementConfig(budget=2, attempts=2), RefinementConfig(budget=2, template="{feedback}"), None,
    ],
)  # fmt: skip
def test_each_option_changes_the_step(
    tiny_model: Callable[[str], str], tmp_path: Path, changed: RefinementConfig | None
) -> None:
    path = tiny_model("llama")
    _, plain, _ = step(tmp_path, path, RefinementConfig(budget=2))
    _, other, _ = step(tmp_path, path, changed)
    assert not same(plain, other)


def test_the_temperature_of_distilled_attempts_is_their_own(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path = tiny_model("llama")
    warm, _, _ = step(tmp_path, path, RefinementConfig(mode="distill"))
    cold, _, _ = step(tmp_path, path, RefinementConfig(mode="distill", temperature=0.2))
    texts = [[batch.attempts[row].completion.text for row in later(batch)] for batch in (warm, cold)]
    assert texts[0] != texts[1]
    first = [[one.completion.token_ids for one in batch.first_attempts] for batch in (warm, cold)]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("model_path", "mode", "options"),
    half(
        ["llama", "lfm2"],
        ["in_context", "distill"],
        [{"beta": 0.1}, {"updates_per_rollout": 2}, {"max_tokens_per_microbatch": 64}],
    ),
    indirect=["model_path"],
)
def test_refinement_goes_with_everything_else(
    model_path: str, tmp_path: Path, mode: Any, options: dict[str, Any]
) -> None:
    data = {
        "sampling": SamplingParams(max_new_tokens=80),
        "refinement": RefinementConfig(mode=mode, attempts=2, budget=4),
    }
    watch = Watch()
    fit(
        tmp_path,
        grpo(model_path, verifiers=[Parity(accept_truncated=True)], **options),
        4,
        rollouts(**data),
        callbacks=[watch],
    )
    assert watch.logged[-1]["optim/skipped_steps"] == 0
    assert any(batch.attempts[-1].number == 3 for batch in watch.batches)


# -- what is logged ----------------------------------------------------------------------------------------------------


def test_first_attempts_and_later_ones_are_logged_apart(model_path: str, tmp_path: Path) -> None:
    batch, _, watch = step(tmp_path, model_path, RefinementConfig(budget=2))
    (logged, *_), second = watch.logged, [batch.attempts[row] for row in later(batch)]
    first = [r.verdict.correct for r in batch.first_attempts]
    assert logged["reward/correct"] == pytest.approx(sum(first) / 12)
    assert logged["refinement/correct"] == pytest.approx(sum(r.verdict.correct for r in second) / len(second))
    assert logged["refinement/attempts"] == pytest.approx(len(second) / len(batch.groups))
    after = list(first)
    for one in second:
        after[one.parent] = after[one.parent] or one.verdict.correct
    assert logged["reward/correct_after_refinement"] == pytest.approx(sum(after) / 12)


@pytest.mark.parametrize(
    ("told", "name"),
    [("format", "val/accuracy_after_refinement"), ("verdict", "val/accuracy_after_gold_feedback"), ("none", None)],
)
def test_validation_says_in_the_name_what_the_feedback_knew(
    model_path: str, tmp_path: Path, told: Any, name: str | None
) -> None:
    seen: list[Any] = []

    class See(Watch):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            seen.append(batch)

    sampling = SamplingParams(max_new_tokens=40)
    data = rollouts(refinement=RefinementConfig(val_feedback=told), sampling=sampling, val_sampling=sampling)
    module = grpo(model_path, verifiers=[Parity(accept_truncated=True)])
    (metrics,) = trainer(tmp_path, 1, limit_val_batches=1.0, callbacks=[See()]).validate(module, datamodule=data)
    assert {key for key in metrics if "after" in key} == ({name} if name else set())
    if name is None:
        return
    (batch,) = seen
    for before, after in zip(batch.single.first_attempts, batch.single.last_attempts, strict=True):
        failed = not before.verdict.correct and before.completion.finish_reason is STOP
        may_be_told = failed and (told == "verdict" or not before.verdict.format_valid)
        assert (after is not before) is may_be_told
    assert metrics[name] == pytest.approx(sum(r.verdict.correct for r in batch.single.last_attempts) / 24)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 0}, "data.refinement.budget: must be at least 1, not 0"),
        ({"attempts": 0}, "data.refinement.attempts: must be at least 1"),
        ({"template": "Again."}, "data.refinement.template: must be a text with {feedback} in it"),
        ({"gamma": 2.0}, "data.refinement.gamma: must be from 0 to 1"),
        ({"temperature": 0.5}, "data.refinement.temperature: under in_context it is data.sampling.temperature"),
        ({"mode": "distill", "temperature": 0.0}, "data.refinement.temperature: must be above 0"),
    ],
)
def test_bad_options_name_their_key(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rollouts(refinement=RefinementConfig(**options))


def test_a_temperature_of_its_own_needs_one_to_differ_from() -> None:
    refinement = RefinementConfig(mode="distill", temperature=0.5)
    with pytest.raises(
        ConfigError, match=r"data\.refinement\.temperature: data\.sampling\.temperature must be above 0"
    ):
        rollouts(refinement=refinement, sampling=SamplingParams(temperature=0.0))
