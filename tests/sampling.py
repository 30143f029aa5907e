"""Completions of the default engine, as most tests ask for them."""

from __future__ import annotations

import statistics

from grpo_lightning.models import Policy
from grpo_lightning.rollout.engines.base import OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion


def generate(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    sampling: SamplingParams,
    seeds: list[int],
    on_finish: OnFinish | None = None,
) -> list[Completion]:
    """``group_size`` completions of every prompt, one per seed, those of a prompt next to each other."""
    engine = InProcessEngine()
    engine.start(policy, max(map(len, prompts)) + sampling.cap)
    conversations = [prompt for prompt in prompts for _ in range(group_size)]
    requests = [Request(prompt, seed) for prompt, seed in zip(conversations, seeds, strict=True)]
    return engine.generate(requests, sampling, on_finish)


def assert_similar(own: list[Completion], plain: list[Completion]) -> None:
    """In bfloat16 another kernel rounds otherwise: compare the log-probs until the first token that differs."""
    differences: list[float] = []
    for one, other in zip(own, plain, strict=True):
        for ours, theirs, *logprobs in zip(one.token_ids, other.token_ids, one.logprobs, other.logprobs, strict=False):
            if ours != theirs:
                break
            differences.append(abs(logprobs[0] - logprobs[1]))
    assert len(differences) > 0.3 * sum(len(one.token_ids) for one in own)
    assert statistics.mean(differences) < 0.03
