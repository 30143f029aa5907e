"""Episodes with an environment: their rows, rewards, limits and errors, and runs that learn from them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.algorithms import GRPOModule, PPOModule
from grpo_lightning.environments import Environment, Message, Reply, Step
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, RefinementConfig, SamplingParams
from grpo_lightning.rollout.limited_calls import call_all
from grpo_lightning.rollout.pass_rates import count, prompt_id
from grpo_lightning.rollout.records import records
from grpo_lightning.types import Prompt
from tests.tiny import TEMPLATE
from tests.toy import (
    BrokenVerifier,
    LetterVerifier,
    ToyTask,
    Watch,
    adam,
    fit,
    grpo,
    llama_alone,
    rollouts,
    same,
    sgd,
    trainer,
)

CAP = 20


class Chatty(Environment):
    """Goes on for as long as a drawn number says, and rewards the replies' lengths.

    Args:
        breaks: where it raises: ``reset``, ``step``, or nowhere.
        rewards: whether it gives rewards.
    """

    def __init__(self, breaks: str = "", rewards: bool = True, **options: Any) -> None:
        super().__init__(**{"max_tokens": 300} | options)
        self.breaks = breaks
        self.rewards = rewards

    def reset(self, row: Prompt) -> Sequence[Message]:
        if self.breaks == "reset" and row.messages[-1]["content"].endswith("0"):
            raise OSError("no world today")
        self.greeting = self.random.choice("abc")
        self.turn = 0
        return [*row.messages[:-1], {"role": "user", "content": f"{self.greeting}{row.messages[-1]['content']}"}]

    def step(self, reply: Reply) -> Step:
        self.turn += 1
        if self.breaks == "step" and self.turn == 2 and len(reply.text) % 2:
            raise OSError("the world has ended")
        reward = len(reply.text) / 10 if self.rewards else None
        if self.turn > 1 and self.random.random() < 0.3:
            return Step(done=True, reward=reward, info={"turn": self.turn})
        said = f"{len(reply.text)} <|im_end|>"
        return Step([{"role": "user", "content": said}], reward=reward, info={"turn": self.turn})


def collected(
    path: str, environment: Environment, folder: Path, learner: Any = None, **options: Any
) -> tuple[Experience, Watch]:
    watch = Watch()
    data = rollouts(environment=environment, sampling=SamplingParams(max_new_tokens=CAP))
    fit(folder, learner or grpo(path, verifiers=[], max_error_rate=1.0), 1, data, callbacks=[watch], **options)
    return watch.batches[0], watch


def by_episode(batch: Experience) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(batch.first)]
    for row, root in enumerate(batch.root_rows):
        rows[root].append(row)
    return rows


@llama_alone
def test_turns_are_rows_that_continue_the_sampled_tokens(model_path: str, tmp_path: Path) -> None:
    batch, watch = collected(model_path, Chatty(max_turns=3), tmp_path)
    policy, attempts = Policy(PolicyConfig(path=model_path)), batch.attempts
    episodes = by_episode(batch)
    assert {len(rows) for rows in episodes} == {1, 2, 3}, "cut off, drawn, and limited"
    for rows in episodes:
        for number, row in enumerate(rows):
            attempt = attempts[row]
            assert attempt.number == number + 1
            assert attempt.parent == (rows[number - 1] if number else None)
            length = int(batch.tokens.prompt_lengths_N[row])
            ids = batch.tokens.ids_NL[row, : int(batch.tokens.lengths_N[row])].tolist()
            assert ids == attempt.conversation + attempt.completion.token_ids, "what is learned is what was sampled"
            if number:
                before = attempts[rows[number - 1]]
                said = before.completion.token_ids
                assert said[-1] in policy.terminators
                assert ids[: len(before.conversation) + len(said) - 1] == before.conversation + said[:-1]
                text = policy.tokenizer.decode(ids[len(before.conversation) + len(said) - 1 : length])
                assert text == (
                    f"<|im_end|>\n<|im_start|>user\n{len(before.completion.text)} < |im_end|><|im_end|>\n"
                    "<|im_start|>assistant\n"
                )
    assert watch.logged[0]["policy/sampler_gap"] < 1e-5
    assert watch.logged[0]["episode/turns"] == pytest.approx(len(batch) / 12)
    returns = [sum(len(attempts[row].completion.text) / 10 for row in rows[:-1]) for rows in episodes]
    returns = [
        value + (0 if attempts[rows[-1]].is_truncated else len(attempts[rows[-1]].completion.text) / 10)
        for value, rows in zip(returns, episodes, strict=True)
    ]
    assert [outcome.reward for outcome in batch.outcomes] == pytest.approx(returns)
    assert watch.logged[0]["reward/mean"] == pytest.approx(sum(returns) / 12)
    assert {attempt.prompt.messages[0]["content"][0] for attempt in attempts} <= set("abc")
    entries = records(batch)
    last = entries[episodes[[len(rows) for rows in episodes].index(3)][-1]]
    assert [message["role"] for message in last["prompt"]] == ["user", "assistant", "user", "assistant", "user"]
    assert json.loads(json.dumps(last))["info"] == {"turn": 3} or last["finish_reason"] == "length"


@llama_alone
def test_pass_rates_count_episodes_by_the_row_that_they_began_with(model_path: str, tmp_path: Path) -> None:
    batch, _ = collected(model_path, Chatty(max_turns=3), tmp_path)
    assert {len(rows) for rows in by_episode(batch)} > {1}
    counts = count(batch.sampled)
    assert counts.keys() <= {prompt_id(row) for row in ToyTask().prompts("train")}
    assert sum(attempts for _, attempts in counts.values()) == batch.first


@llama_alone
@pytest.mark.parametrize("breaks", ["step", "reset"])
def test_a_broken_environment_is_an_error_and_never_a_reward_of_0(model_path: str, tmp_path: Path, breaks: str) -> None:
    batch, watch = collected(model_path, Chatty(breaks), tmp_path)
    broken = [rows for rows in by_episode(batch) if batch.attempts[rows[0]].verdict.error is not None]
    assert 0 < len(broken) < 12
    said = "Chatty: OSError: " + ("the world has ended" if breaks == "step" else "no world today")
    for rows in broken:
        for row in rows:
            assert batch.attempts[row].verdict.error == said
            assert math.isnan(batch.attempts[row].reward)
            assert not batch.scored_N[row]
    assert watch.logged[0]["reward/errors"] == pytest.approx(len(broken) / 12)
    with pytest.raises(
        RunError, match=r"the environment or a verifier broke on .* the last error on this rank: Chatty"
    ):
        collected(model_path, Chatty(breaks), tmp_path, grpo(model_path, verifiers=[], max_error_rate=0.0))


@llama_alone
def test_verifiers_judge_the_last_turn_and_the_environment_adds_its_rewards(model_path: str, tmp_path: Path) -> None:
    learner = grpo(model_path, verifiers=[LetterVerifier(), BrokenVerifier("q")], max_error_rate=1.0)
    batch, _ = collected(model_path, Chatty(max_turns=2), tmp_path, learner)
    for rows in by_episode(batch):
        last = batch.attempts[rows[-1]]
        judged = last.rewards_by_verifier
        assert set(judged) == {"LetterVerifier", "BrokenVerifier"}
        if last.verdict.error is None:
            own = 0 if last.is_truncated else len(last.completion.text) / 10
            assert last.reward == pytest.approx(own + sum(judged.values()) / 2)
        else:
            assert all(math.isnan(batch.attempts[row].reward) for row in rows)
        assert all(batch.attempts[row].verdict == last.verdict for row in rows)
        assert all(
            math.isnan(reward) for row in rows[:-1] for reward in batch.attempts[row].rewards_by_verifier.values()
        )
    batch, _ = collected(model_path, Chatty(rewards=False), tmp_path)
    errors = {attempt.verdict.error for attempt in batch.attempts if not attempt.verdict.judged}
    assert errors == {"Chatty: the episode had no reward, and there is no verifier"}


@llama_alone
def test_an_episode_ends_where_the_next_reply_might_not_fit(model_path: str, tmp_path: Path) -> None:
    batch, _ = collected(model_path, Chatty(max_tokens=110), tmp_path)
    assert max(outcome.turns for outcome in batch.outcomes) > 1
    assert max(len(attempt.conversation) for attempt in batch.attempts) + CAP <= 110
    text = r"max_tokens: the longest prompt has \d+ tokens, and a reply up to 20, more than 40 together"
    with pytest.raises(ConfigError, match=text):
        collected(model_path, Chatty(max_tokens=40), tmp_path)


class Restless(Chatty):
    """Begins every episode differently."""

    begun = 0

    def reset(self, row: Prompt) -> Sequence[Message]:
        Restless.begun += 1
        return [{"role": "user", "content": str(Restless.begun)}]


class Appending(Chatty):
    """Changes the messages that it gets."""

    def reset(self, row: Prompt) -> Sequence[Message]:
        self.turn = 0
        row.messages[-1]["content"] += "?"
        row.messages.append({"role": "user", "content": "Go."})
        return row.messages


@llama_alone
def test_an_episode_may_change_the_messages_of_its_row(model_path: str, tmp_path: Path) -> None:
    batch, _ = collected(model_path, Appending(max_turns=1), tmp_path)
    assert {str(attempt.prompt.messages).count("Go.") for attempt in batch.attempts} == {1}
    assert not any("??" in str(attempt.prompt.messages) for attempt in batch.attempts)


class Replies(Environment):
    """Begins with the messages of the row."""

    def step(self, reply: Reply) -> Step:
        return Step([{"role": "user", "content": "Go on."}])


class Hanging(Chatty):
    """Does not return from some steps."""

    def step(self, reply: Reply) -> Step:
        if len(reply.text) % 3 == 0:
            time.sleep(3600)
        return super().step(reply)


@llama_alone
def test_a_truncated_prompt_that_would_be_whole_again_is_refused(model_path: str, tmp_path: Path) -> None:
    forgets = TEMPLATE.replace("message.content", "(message.content if loop.last else message.content[:1])")
    for environment, template, text in (
        (Replies(), None, None),
        (Chatty(), None, r"Chatty\.reset changed the messages of a row whose prompt was truncated.*: set it to drop"),
        (Replies(), forgets, r"the chat template rewrites earlier turns \(replies\), .*: set it to drop"),
    ):
        task, limit = ToyTask(chat_template=template), {"max_prompt_tokens": 20, "overlong": "truncate-left"}
        cut = rollouts(task=task, environment=environment, **limit)
        refused = pytest.raises((ConfigError, RunError), match=rf"data\.overlong: {text}")
        with nullcontext() if text is None else refused:
            fit(tmp_path, grpo(model_path), 1, cut)


@llama_alone
def test_what_cannot_be_compared_is_refused(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Restless\.reset began episodes of the row train/0/0 differently"):
        collected(model_path, Restless(), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.refinement: an environment gives its own feedback"):
        rollouts(environment=Chatty(), refinement=RefinementConfig())
    with pytest.raises(ConfigError, match=r"model\.episode_discount: must be from 0 to 1"):
        grpo(model_path, episode_discount=2.0)


@llama_alone
def test_a_step_that_hangs_is_an_error(model_path: str, tmp_path: Path) -> None:
    batch, _ = collected(model_path, Hanging(max_seconds=0.5), tmp_path)
    errors = {attempt.verdict.error for attempt in batch.attempts if attempt.verdict.error}
    assert errors == {"Hanging: TimeoutError: took more than 0.5 s"}
    assert any(attempt.verdict.error is None for attempt in batch.attempts)


def test_a_call_that_exits_is_an_error_at_once() -> None:
    started = time.monotonic()
    (error,) = call_all([lambda: exit(3)], 30.0)
    assert time.monotonic() - started < 10
    assert repr(error) == "RuntimeError('SystemExit')"


def test_calls_that_hang_do_not_hold_up_the_others() -> None:
    def call(number: int) -> int:
        if number % 4 == 0:
            time.sleep(30)
        if number % 4 == 1:
            raise ValueError(number)
        return number

    started = time.monotonic()
    results = call_all([lambda number=number: call(number) for number in range(40)], 1.0)  # type: ignore[misc]
    assert time.monotonic() - started < 25
    kinds = [TimeoutError, ValueError, int, int]
    assert all(isinstance(result, kinds[number % 4]) for number, result in enumerate(results))
    assert call_all([], 1.0) == []


@llama_alone
@pytest.mark.parametrize("credit", ["return", "return_to_go", "turn"])
def test_grpo_and_ppo_learn_from_what_the_turns_are_credited_with(model_path: str, tmp_path: Path, credit: Any) -> None:
    options: dict[str, Any] = {"episode_credit": credit, "episode_discount": 0.5, "max_error_rate": 1.0}
    batch, _ = collected(model_path, Chatty(), tmp_path, learner := grpo(model_path, verifiers=[], **options))
    assert isinstance(learner, GRPOModule)
    rewards = [attempt.reward for attempt in batch.attempts]
    seen: list[Experience] = []
    common: dict[str, Any] = {"policy": PolicyConfig(path=model_path), "verifiers": [], "optimizer": sgd}
    ppo = PPOModule(**common, beta=0.0, whiten_advantages=False, lam=1.0, **options)
    targets = ppo.targets
    ppo.targets = lambda *args: seen.append(targets(*args)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    collected(model_path, Chatty(), tmp_path, ppo)
    # With lambda = 1 the target of the values is the reward at the end of the row: the credit of the turn.
    credited = {"turn": lambda rows, at: rewards[rows[at]]}
    credited["return_to_go"] = lambda rows, at: sum(rewards[row] * 0.5**n for n, row in enumerate(rows[at:]))
    credited["return"] = lambda rows, at: credited["return_to_go"](rows, 0)
    for rows in by_episode(batch):
        for at, row in enumerate(rows):
            assert seen[0].returns_NT[row, 0].item() == pytest.approx(credited[credit](rows, at), abs=1e-4)  # type: ignore[attr-defined]


@llama_alone
def test_a_resumed_run_has_the_same_episodes(model_path: str, tmp_path: Path) -> None:
    def data() -> Any:
        return rollouts(environment=Chatty(), sampling=SamplingParams(max_new_tokens=CAP))

    def module() -> Any:
        return grpo(model_path, verifiers=[], optimizer=adam, advantage="leave_one_out")

    whole = fit(tmp_path / "whole", module(), 2, data())
    first = trainer(tmp_path / "first", 1)
    first.fit(module(), datamodule=data())
    first.save_checkpoint(tmp_path / "one.ckpt")
    assert same(whole, fit(tmp_path / "rest", module(), 2, data(), ckpt_path=str(tmp_path / "one.ckpt")))


@llama_alone
def test_an_evaluation_has_episodes_too(model_path: str, tmp_path: Path) -> None:
    data = rollouts(environment=Chatty(), val_sampling=SamplingParams(temperature=1.0, max_new_tokens=CAP), pass_at_k=2)
    runner = trainer(tmp_path, 1, limit_val_batches=1)
    metrics = runner.validate(grpo(model_path, verifiers=[]), datamodule=data, verbose=False)[0]
    assert metrics["val/turns"] > 1
    assert metrics["val/reward"] > 0
    assert {"val/accuracy", "val/pass@2"} <= metrics.keys()
