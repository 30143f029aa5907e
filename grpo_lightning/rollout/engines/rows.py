"""Rows while they are sampled: their tokens and log-probs so far, and how each ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.errors import RunError
from grpo_lightning.functional import excluded_tokens
from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.sampling import SamplingParams, draw, uniforms
from grpo_lightning.types import Completion, FinishReason

if TYPE_CHECKING:
    from llguidance import LLMatcher

CHECK_EVERY = {"cuda": 8}
"""Tokens between two checks for finished rows: on a GPU a check waits for the tokens, and extra ones cost less."""


class SampledRows:
    """What has been sampled so far, for all rows ``N``, and which of them are active, in the decoder's order.

    All active rows take a step at the same time. Each row counts its own columns, since some enter later than others.

    Args:
        sampling: temperature, truncation, length.
        policy: provides the tokenizer, the terminators, the device, and grammars where requests have one.
    """

    def __init__(self, sampling: SamplingParams, policy: Policy) -> None:
        self.sampling, self.policy = sampling, policy
        self.tokenizer, self.device = policy.tokenizer, policy.device
        self.step = 0
        integers, booleans = (torch.zeros(0, dtype=kind, device=self.device) for kind in (torch.long, torch.bool))
        numbers_NT = torch.zeros(0, sampling.cap, device=self.device)
        self.tokens_NT = numbers_NT.long()
        self.logprobs_NT = self.sampling_logprobs_NT = self.uniforms_NT = numbers_NT
        self.temperature_N = numbers_NT[:, 0]
        self.lengths_N = self.begun_N = self.active_R = integers
        self.stopped_N = booleans
        self.ends = torch.tensor(policy.terminators, device=self.device)
        self.stops = _StopStrings(policy.tokenizer, sampling.stop) if sampling.stop else None
        self.check_every = 1 if sampling.stop else CHECK_EVERY.get(self.device.type, 1)
        self.checked = 0  # the step of the last check
        self._caps: list[int] = []  # steps at which rows that entered together reach the cap
        self._one_temperature = True
        self._matchers: list[LLMatcher] = []  # one per row, or none at all

    def add(self, requests: Sequence[Request]) -> range:
        """Make room for more rows, one per request, and return their numbers."""
        old, new = len(self.lengths_N), len(requests)
        if new:
            for name in ("tokens_NT", "logprobs_NT", "sampling_logprobs_NT", "begun_N", "stopped_N"):
                rows = getattr(self, name)
                setattr(self, name, torch.cat([rows, rows.new_zeros(new, *rows.shape[1:])]))
            self.lengths_N = torch.cat([self.lengths_N, self.lengths_N.new_full((new,), self.sampling.cap)])
            seeds = [request.seed for request in requests]
            self.uniforms_NT = torch.cat([self.uniforms_NT, uniforms(seeds, self.sampling.cap).to(self.device)])
            usual = self.sampling.temperature
            own = [usual if request.temperature is None else request.temperature for request in requests]
            self.temperature_N = torch.cat([self.temperature_N, torch.tensor(own, device=self.device)])
            self._one_temperature &= set(own) == {usual}
            if grammars := [request.grammar for request in requests if request.grammar is not None]:
                self._matchers += map(self.policy.grammars.start, grammars)
                self.check_every = 1  # a grammar has to see each token before the next one
        return range(old, old + new)

    def enter(self, rows: list[int]) -> None:
        """Make rows active from the next step on, after those that are."""
        entering = torch.tensor(rows, device=self.device)
        self.active_R = torch.cat([self.active_R, entering])
        self.begun_N[entering] = self.step
        self._caps.append(self.step + self.sampling.cap)

    def draw(self, logits_RV: Tensor) -> Tensor:
        """One token of each active row."""
        column_R = self.step - self.begun_N[self.active_R]
        temperature_R = None if self._one_temperature else self.temperature_N[self.active_R]
        uniforms_R = self.uniforms_NT[self.active_R, column_R]
        matchers = [self._matchers[row] for row in self.active_R.tolist()] if self._matchers else []
        excluded_RV = None
        if matchers:
            bits_RW = self.policy.grammars.allowed(matchers).to(self.device)
            excluded_RV = excluded_tokens(bits_RW, logits_RV.shape[1])
        drawn = draw(logits_RV, uniforms_R, self.sampling, temperature_R, excluded_RV)
        if matchers:
            self.policy.grammars.advance(matchers, drawn.tokens_N.tolist())
        self.tokens_NT[self.active_R, column_R] = drawn.tokens_N
        self.logprobs_NT[self.active_R, column_R] = drawn.logprobs_N
        self.sampling_logprobs_NT[self.active_R, column_R] = drawn.sampling_logprobs_N
        self.step += 1
        return drawn.tokens_N

    def finished(self) -> list[int]:
        """Places among the active rows of those that have finished since the last check.

        It is made at intervals, and whenever some rows have reached the cap; else there are none.
        """
        window = self.step - self.checked
        if window < self.check_every and self.step not in self._caps:
            return []
        self.checked = self.step
        ended_RW = torch.isin(self.latest(window), self.ends)
        if self.stops is not None:
            ended_RW |= self.stops.found(self)[:, None]
        done_R = ended_R = ended_RW.any(1)
        if self.step in self._caps:
            done_R = ended_R | (self.step - self.begun_N[self.active_R] == self.sampling.cap)
        done: list[int] = done_R.nonzero()[:, 0].tolist()
        if done:
            rows = self.active_R[ended_R]
            before = self.step - window - self.begun_N[rows]
            self.lengths_N[rows] = before + 1 + ended_RW[ended_R].int().argmax(1)
            self.stopped_N[rows] = True
        return done

    def latest(self, window: int) -> Tensor:
        """The tokens of the last steps of each active row, ``[R, window]``, padded on the left with its first one."""
        place_RW = (self.step - self.begun_N[self.active_R])[:, None] + torch.arange(-window, 0, device=self.device)
        return self.tokens_NT[self.active_R[:, None], place_RW.clamp(min=0)]

    def completions(self, rows: Tensor) -> list[Completion]:
        """The completions of the given rows.

        Raises:
            RunError: some log-probs are NaN, so the policy's logits were.
        """
        if self.logprobs_NT[rows].isnan().any():
            raise RunError(
                "rollout: the policy's log-probs are NaN: resume from an earlier checkpoint, with a lower learning rate"
            )
        lengths, stopped = self.lengths_N[rows].tolist(), self.stopped_N[rows].tolist()
        ids = [row[:length] for row, length in zip(self.tokens_NT[rows].tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs, sampling_logprobs = self.logprobs_NT[rows].tolist(), self.sampling_logprobs_NT[rows].tolist()
        columns = zip(ids, texts, lengths, stopped, logprobs, sampling_logprobs, strict=True)
        return [
            Completion(
                token_ids=row,
                text=self.sampling.read(text),
                finish_reason=FinishReason.STOP if stop else FinishReason.LENGTH,
                logprobs=before[:length],
                sampling_logprobs=after[:length],
            )
            for row, text, length, stop, before, after in columns
        ]


class _StopStrings:
    """Finds stop strings in the text of the tokens that can have completed one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        # A token holds at least one byte; one more token for a character that the window would cut.
        self.window = max(len(string.encode()) for string in strings) + 1

    def found(self, rows: SampledRows) -> Tensor:
        """Whether each active row's text now holds a stop string."""
        lengths = (rows.step - rows.begun_N[rows.active_R]).tolist()
        recent = [row[-length:] for row, length in zip(rows.latest(self.window).tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(recent, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        hits = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(hits, device=rows.active_R.device)
