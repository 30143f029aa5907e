"""Whether a server samples from our policy: log-probs of a fixed text, on both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines.vllm.handshake import sampling_body

TEXT = 'The quick brown fox counts 3 + 4 = 7, and then {"name": "fox", "legs": 4}. '
"""The text that is compared, repeated."""
PROMPT, SAMPLED = 200, 64
"""Tokens of the prompt, which is longer than a block of any prefix cache, and of its continuation, where the model's
context has room for them."""
EXPECTED = 64
"""Tokens whose log-probs are kept of every version: their pass is short beside an update."""


def fixed_text(policy: Policy, longest_row: int) -> dict[str, Any]:
    """The request for a completion whose log-probs are compared."""
    ids = _ids(policy)
    sampled = min(SAMPLED, max(longest_row // 2, 1))
    return sampling_body(ids[: max(1, min(PROMPT, longest_row - sampled))], sampled, 1.0, 0, policy.terminators)


def gap(policy: Policy, prompt: list[int], choice: dict[str, Any]) -> float:
    """How far the log-probs of a server's completion are from the policy's: the mean, in nats."""
    tokens, theirs = choice["token_ids"], torch.tensor(choice["logprobs"]["token_logprobs"])
    if max(tokens) >= policy.lm.get_output_embeddings().weight.shape[0]:
        return math.inf  # of another vocabulary
    return float((_logprobs(policy, prompt, tokens) - theirs).abs().mean())


@dataclass(frozen=True)
class ExpectedLogprobs:
    """What the policy says of a fixed text in one version: a server is compared with it while the policy learns.

    Args:
        ids: the tokens of the text.
        logprobs: of each but the first, in nats.
    """

    ids: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, policy: Policy, longest_row: int) -> ExpectedLogprobs:
        """Compute them with the present weights, in a row that the servers take."""
        ids = _ids(policy)[: max(2, min(EXPECTED, longest_row - 1))]
        return cls(ids, _logprobs(policy, ids[:1], ids[1:]).tolist())

    def request(self) -> dict[str, Any]:
        """The request for a server's log-probs of the text."""
        return sampling_body(self.ids, 1, 1.0, 0, []) | {"prompt_logprobs": 0}

    def gap(self, choice: dict[str, Any]) -> float:
        """How far a server's are from these: the mean, in nats."""
        # The first token has none.
        entries = zip(self.ids[1:], choice["prompt_logprobs"][1:], strict=True)
        theirs = [entry[str(token)]["logprob"] for token, entry in entries]
        return sum(abs(a - b) for a, b in zip(theirs, self.logprobs, strict=True)) / len(theirs)


def _ids(policy: Policy) -> list[int]:
    return policy.tokenizer.encode(TEXT * 20, add_special_tokens=False)


def _logprobs(policy: Policy, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The policy's log-probs ``(T,)`` of tokens after a prompt, in nats."""
    with torch.no_grad():
        logprobs_NT, _ = policy.logprobs(token_rows([prompt], [tokens], policy.pad_token_id).to(policy.device))
    return logprobs_NT[0].cpu()
