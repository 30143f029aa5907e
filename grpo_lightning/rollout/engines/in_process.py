"""The default engine: decodes in the trainer's own process, from the policy's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_lightning.models.policy import Policy
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.decoder import Decoder, DecodingModel
from grpo_lightning.rollout.engines.rows import SampledRows
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion

# `python benchmarks/constants.py joins` times rollouts with other values of these two.
MIN_JOIN_FRACTION = 0.1
"""Hand over finished rows, and admit waiting ones, only when they exceed this fraction of the rows still decoding: each
costs an extra forward pass."""
MAX_CACHE_GROWTH = 1.25
"""Waiting rows join only while they widen the cache of the decoding rows by at most this factor: attention reads the
padding, too."""


class InProcessEngine(Engine):
    """Samples from the policy itself: its current weights, without a copy.

    A prompt is prefilled once, however many requests have it, and its cache forked to their rows. Rows that have
    finished leave the batch, so the last long completion decodes alone, or with further rows that have joined it. Never
    more rows decode together than ``generate`` was called with.
    """

    constrains = True
    policy: Policy

    def start(self, policy: Policy, longest_row: int) -> None:
        self.policy = policy

    def push(self, policy: Policy, version: str) -> None:
        """Nothing to do: the weights are shared."""

    def stop(self) -> None:
        """Nothing to do: the policy belongs to the module."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        rows = SampledRows(sampling, self.policy)
        waiting = list(zip(rows.add(requests), requests, strict=True))

        def admit(count: int) -> list[list[int]]:
            admitted = sorted(waiting[:count], key=lambda numbered: prefill_order(numbered[1].prompt))
            del waiting[:count]
            rows.enter([number for number, _ in admitted])
            return [request.prompt for _, request in admitted]

        ended: list[int] = []
        decoder: Decoder | None = None
        with self.policy.rollout_mode():
            model = DecodingModel(self.policy)
            while True:
                if decoder is None:
                    decoder = Decoder(model, admit(len(requests)), sampling.cap)
                tokens_R = rows.draw(decoder.logits_RV)
                if finished := rows.finished():
                    ended += rows.active_R[finished].tolist()
                    if len(finished) < len(rows.active_R):
                        kept_R = decoder.drop(finished)
                        tokens_R, rows.active_R = tokens_R[kept_R], rows.active_R[kept_R]
                    else:
                        rows.active_R = rows.active_R[:0]
                active = len(rows.active_R)
                if on_finish is not None and len(ended) > MIN_JOIN_FRACTION * active:
                    further = on_finish(ended, rows.completions(torch.tensor(ended, device=self.policy.device)))
                    waiting += zip(rows.add(further), further, strict=True)
                    ended = []
                if not active:
                    if not waiting:
                        break
                    decoder = None  # frees its cache before the next one is made
                    continue
                self.before_step(rows.step)
                decoder.advance(tokens_R)
                if waiting and rows.checked == rows.step:
                    # Never more rows than at first: memory was planned for these.
                    room = len(requests) - active
                    if may_join(decoder, [request.prompt for _, request in waiting[:room]]):
                        decoder.join(admit(room))
        return rows.completions(torch.arange(len(rows.lengths_N), device=self.policy.device))

    def before_step(self, step: int) -> None:
        """Hook for subclasses, called before the token of a step, counted from 1, is fed to the model."""


def may_join(decoder: Decoder, prompts: list[list[int]]) -> bool:
    """Whether waiting rows are many enough, and short enough, for joining now to pay."""
    if len(prompts) <= MIN_JOIN_FRACTION * len(decoder.position_R) or not decoder.model.joins_early:
        return False
    return max(map(len, prompts)) <= MAX_CACHE_GROWTH * decoder.length


def prefill_order(prompt: list[int]) -> tuple[int, list[int]]:
    """Sort key: the longest first, so that a prefill pads little, and equal prompts next to each other."""
    return -len(prompt), prompt
