"""Scoring: the same verdicts whether a verifier waits for all completions or is handed them as they finish."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.scoring import Scoring
from grpo_lightning.types import Completion, FinishReason, Prompt, Sample, Turn, Verdict
from grpo_lightning.verifiers import Verifier
from tests.toy import BrokenVerifier, LetterVerifier, Watch, fit, grpo, llama_alone, rollouts, same


class SlowLetter(LetterVerifier):
    """The toy's verifier, as one that is worth a thread; it notes when it was called, with how many samples."""

    slow = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, str]] = []

    def verify_batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.calls.append((len(samples), threading.current_thread().name))
        return super().verify_batch(samples)


def completion(text: str) -> Completion:
    return Completion([5], text, FinishReason.STOP, [-1.0], [-1.0])


def test_a_slow_verifier_judges_in_its_own_thread_while_others_wait_for_all() -> None:
    slow, quick = SlowLetter(), LetterVerifier()
    turns = [Turn(Prompt([], answer="e"), [1])] * 4
    texts = ["aaaa", "zzzz", "aazz", "a"]
    with Scoring({"slow": slow, "quick": quick}, turns) as scoring:
        scoring.hand_over([2], [completion(texts[2])])
        deadline = time.monotonic() + 10
        while not slow.calls and time.monotonic() < deadline:
            time.sleep(0.001)
        assert slow.calls, "it should have begun before the other rows were there"
        scoring.hand_over([3, 0, 1], [completion(texts[row]) for row in (3, 0, 1)])
        made = scoring.attempts(range(4), [completion(text) for text in texts])
    assert [rollout.reward for rollout in made] == [1.0, 0.0, 0.5, 1.0]
    assert [count for count, _ in slow.calls] == [1, 3]
    assert all(name != threading.main_thread().name for _, name in slow.calls)
    assert [dict(rollout.rewards_by_verifier) for rollout in made] == [{"slow": r, "quick": r} for r in (1, 0, 0.5, 1)]


@llama_alone
def test_training_is_the_same_either_way(model_path: str, tmp_path: Path) -> None:
    slow, watch = SlowLetter(), Watch()
    data = {"sampling": SamplingParams(max_new_tokens=40)}
    quick = fit(tmp_path, grpo(model_path), 2, rollouts(**data))
    assert same(quick, fit(tmp_path, grpo(model_path, verifiers=[slow]), 2, rollouts(**data), callbacks=[watch]))
    assert len(slow.calls) > 2, "completions should have been handed over in several batches"
    assert watch.logged[0]["time/verify_s"] >= 0


class SlowBroken(BrokenVerifier):
    slow = True


@pytest.mark.parametrize("verifier", [BrokenVerifier(), SlowBroken()])
def test_a_broken_verifier_leaves_no_reward_in_either_way(verifier: Verifier) -> None:
    with Scoring({"letters": LetterVerifier(), "broken": verifier}, [Turn(Prompt([], answer="e"), [1])] * 2) as scoring:
        texts = [completion("aa"), completion("bb")]
        scoring.hand_over([0, 1], texts)
        first, second = scoring.attempts([0, 1], texts)
    assert math.isnan(first.reward)
    assert first.verdict.error is not None
    assert not first.verdict.correct
    assert second.reward == pytest.approx((1.0 + 1.0) / 2)
    assert second.verdict.correct
