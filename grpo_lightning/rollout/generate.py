"""Complete given prompts, without a task or a Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Prompt

Chat = Sequence[Mapping[str, Any]]
"""Messages, ``[{"role": ..., "content": ...}, ...]``."""


def generate_texts(policy: Policy, prompts: Sequence[str | Chat], sampling: SamplingParams, seed: int) -> list[str]:
    """Sample one completion per prompt, on the policy's device.

    Args:
        policy: the policy.
        prompts: texts, each of which becomes a user's turn, or chats.
        sampling: how to sample. Without stop strings, those of the chat template end a completion.
        seed: seeds the first completion; each further one has the next seed.

    Raises:
        ConfigError: the chat template refuses a chat, the sampling's constraint asks for more than messages, or a stop
            string is a special token.
    """
    sampling.check_stops(policy.tokenizer, "sampling")
    sampling = sampling.with_stops_of(policy.tokenizer)
    chats = [
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
        for prompt in prompts
    ]
    requests = [
        Request(encode_prompt(policy.tokenizer, chat), seed + number, grammar=_grammar(sampling, chat))
        for number, chat in enumerate(chats)
    ]
    if not requests:
        return []
    engine = InProcessEngine()
    engine.start(policy, max(len(request.prompt) for request in requests) + sampling.cap)
    return [completion.text for completion in engine.generate(requests, sampling)]


def _grammar(sampling: SamplingParams, chat: list[dict[str, Any]]) -> str | None:
    if sampling.constraint is None:
        return None
    try:
        return sampling.constraint.grammar(Prompt(chat))
    except ValueError as error:
        raise ConfigError(f"sampling.constraint: {type(sampling.constraint).__name__}: {error}") from error
