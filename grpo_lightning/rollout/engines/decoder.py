"""The model while it decodes: prompts prefilled once, rows forked from them, tokens fed, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import Cache

from grpo_lightning.errors import first_line
from grpo_lightning.models.checks import output_head
from grpo_lightning.models.policy import Policy
from grpo_lightning.speed.caches import EarlyJoins
from grpo_lightning.speed.decoding_cache import decoding_cache, drop_rows
from grpo_lightning.speed.direct import DirectDecoding, DirectStep, HasLayers
from grpo_lightning.speed.graphs import GraphedDecoding, GraphedStep
from grpo_lightning.speed.packed import PackedWeights, linear
from grpo_lightning.speed.passes import cut_by_padding, pass_overhead
from grpo_lightning.speed.shared_beginning import Beginning, SharedBeginnings, common_beginning

PREFILL_TOKENS = 4096
"""Prompt tokens, padding included, of one prefill pass: a bound on its memory. Results do not depend on it."""


class DecodingModel:
    """A policy's model as it decodes, from its current weights: made anew for every batch of prompts.

    Args:
        policy: the policy, in rollout mode.
    """

    def __init__(self, policy: Policy) -> None:
        self.lm = policy.lm
        self.body = self.lm.get_decoder()
        self.pad = policy.pad_token_id
        uses = policy.shortcuts.uses
        packs = uses(PackedWeights)
        self.direct = DirectStep(self.lm, packs) if uses(DirectDecoding) else None
        self._head = output_head(self.lm)
        self._product = linear(self.lm.get_output_embeddings(), packs)
        self.has_plain_cache = policy.has_plain_cache
        self.joins_early = uses(EarlyJoins)
        self.shares_beginnings = uses(SharedBeginnings)
        self.graphs = uses(GraphedDecoding)
        self._shortcuts = policy.shortcuts

    def step(self, ids_R: Tensor, position_R: Tensor, mask_RL: Tensor | None, cache: HasLayers) -> Tensor:
        """``logits_RV`` after one token of each row, where the model decodes directly; see :class:`DirectStep`."""
        assert self.direct is not None
        return self.logits(self.direct(ids_R, position_R, mask_RL, cache))

    def stop_recording(self, error: Exception) -> None:
        """Decode without graphs from now on, and in later rollouts: a step has failed."""
        self.graphs = False
        self._shortcuts.rule_out(GraphedDecoding, f"a step has failed ({first_line(error)})")

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """``logits_RV`` of the output head."""
        return self._head.logits(self._product(hidden_RD))


class Decoder:
    """Cache, masks and the next logits of the active rows ``R``, which start as one row per prompt.

    Equal prompts are prefilled once, and the cache forked to their rows. Left padding keeps the rows' last tokens
    aligned, so that all rows fill the same column of the cache. Without padding no mask is needed, and the kernels for
    that are faster.

    Args:
        model: what decodes, without gradients.
        prompts: token ids, ``R`` lists, the longest first, equal ones next to each other.
        max_new_tokens: limit of the tokens drawn per row.
    """

    def __init__(
        self,
        model: DecodingModel,
        prompts: list[list[int]],
        max_new_tokens: int,
    ) -> None:
        self.model = model
        self.device = model.lm.device
        self.max_new_tokens = max_new_tokens
        # A mask in the kernel's own shape is taken as it is. To make one out of rows of bits, transformers looks at
        # them, and on a GPU every look waits for the tokens before.
        self.kernel_mask = model.has_plain_cache and model.lm.config._attn_implementation == "sdpa"
        self.logits_RV, caches, forks = self._prefill(prompts)
        self.position_R = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        self._fork(caches, forks)
        self.length = max(map(len, prompts))
        self.padded = min(map(len, prompts)) < self.length
        self._make_mask()

    def join(self, prompts: list[list[int]]) -> None:
        """Add rows, one per prompt, after those that are active. Only where :attr:`DecodingModel.joins_early`."""
        logits_RV, caches, forks = self._prefill(prompts)
        active_R = torch.arange(len(self.position_R), device=self.device)
        self._settle()
        self.logits_RV = torch.cat([self.logits_RV, logits_RV])
        last_R = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        self.position_R = torch.cat([self.position_R, last_R])
        self._fork([self.cache, *caches], [active_R, *forks])
        lengths = {self.length, *map(len, prompts)}
        self.length = max(lengths)
        self.padded = self.padded or len(lengths) > 1
        self._make_mask()

    def _fork(self, caches: list[Cache], forks: list[Tensor]) -> None:
        """Make the cache of all rows, and what decodes them at its addresses."""
        self.graphed = None  # frees the graphs of the cache before
        dtype = None if self.model.direct is None else self.model.direct.cache_dtype
        self.cache = decoding_cache(caches, forks, self.max_new_tokens, self.model.graphs, dtype)
        if self.model.graphs:
            self.graphed = GraphedStep(self.model.step, self.cache, len(self.position_R), self.device)

    def _settle(self) -> None:
        """The cache's layers know what they hold."""
        if self.graphed is not None:
            self.graphed.settle(self.length, len(self.position_R))

    def _make_mask(self) -> None:
        """The columns of the cache that belong to each row, with those of all tokens to come."""
        start_R = self.length - 1 - self.position_R
        place_L = torch.arange(self.length + self.max_new_tokens, device=start_R.device)
        self.mask_RL = place_L >= start_R[:, None]

    def advance(self, tokens_R: Tensor) -> None:
        """Feed the tokens just drawn."""
        position_R = self.position_R + 1
        if self.graphed is not None:
            try:
                self.logits_RV = self.graphed(tokens_R, position_R, self.length + 1)
            except Exception as error:
                self.model.stop_recording(error)
                self._settle()
                self.graphed = None
        self.length += 1
        self.position_R = position_R
        if self.graphed is not None:
            return
        mask_RL = self.mask_RL[:, : self.length] if self.padded else None
        if self.model.direct is not None:
            self.logits_RV = self.model.step(tokens_R, position_R, mask_RL, self.cache)
        else:
            self.logits_RV = self.model.logits(self._forward(tokens_R, mask_RL))

    def _forward(self, tokens_R: Tensor, mask_RL: Tensor | None) -> Tensor:
        mask = None if mask_RL is None else mask_RL[:, None, None] if self.kernel_mask else mask_RL.long()
        out = self.model.body(
            input_ids=tokens_R[:, None],
            attention_mask=mask,
            position_ids=self.position_R[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return cast(Tensor, out.last_hidden_state[:, -1])

    def drop(self, rows: list[int]) -> Tensor:
        """Remove rows. The last rows take their places, so that little is copied.

        Returns:
            The old places of the rows that are left, in their new order.
        """
        count = len(self.position_R) - len(rows)
        to = [row for row in rows if row < count]
        dropped = set(rows)
        source = [row for row in range(count, len(self.position_R)) if row not in dropped]
        device = self.device
        self._settle()
        to_R, source_R = torch.tensor(to, device=device), torch.tensor(source, device=device)
        index_R = torch.arange(count, device=device)
        if to:
            index_R[to_R] = source_R
        drop_rows(self.cache, to_R.long(), source_R.long(), index_R)
        self.mask_RL = self.mask_RL[index_R]
        self.position_R = self.position_R[index_R]
        return index_R

    def _prefill(self, prompts: list[list[int]]) -> tuple[Tensor, list[Cache], list[Tensor]]:
        """Run each distinct prompt once.

        Returns:
            The next logits of all rows, the caches, and for each cache the rows of it that the rows here start from.
        """
        slots: dict[tuple[int, ...], int] = {}
        slot_R = torch.tensor([slots.setdefault(tuple(prompt), len(slots)) for prompt in prompts])
        distinct = list(slots)
        overhead = pass_overhead(self.model.body)
        parts = _parts(distinct, overhead) if self.model.has_plain_cache else [distinct]
        beginning = self._beginning(distinct, overhead) if self.model.shares_beginnings else None
        first, last, caches, forks = 0, [], [], []
        for part in parts:
            of_part_R = (slot_R >= first) & (slot_R < first + len(part))
            forks.append((slot_R[of_part_R] - first).to(self.device))
            hidden_BD, cache = self._run(part, beginning)
            last.append(hidden_BD)
            caches.append(cache)
            first += len(part)
        return self.model.logits(torch.cat(last))[slot_R.to(self.device)], caches, forks

    def _beginning(self, prompts: Sequence[tuple[int, ...]], overhead: int) -> Beginning | None:
        """What all prompts begin with, unless running it again for each of them costs less than a pass."""
        tokens = common_beginning(prompts)
        if len(tokens) * (len(prompts) - 1) <= overhead:
            return None
        _, cache = self._run([tokens])
        return Beginning(tokens, cache)

    def _run(self, prompts: Sequence[Sequence[int]], beginning: Beginning | None = None) -> tuple[Tensor, Cache]:
        """The hidden state at each prompt's last token, and the cache of all."""
        lengths = [len(prompt) for prompt in prompts]
        longest = width = max(lengths)
        cache = None
        length_B = torch.tensor(lengths, device=self.device)
        if beginning is not None and longest - min(lengths) <= len(beginning.tokens):
            # Shorter prompts run some tokens of the beginning again instead of padding.
            width = longest - len(beginning.tokens)
            cache = beginning.fork(length_B - width)
        ids_BP = torch.tensor(
            [([self.model.pad] * (longest - len(ids)) + list(ids))[-width:] for ids in prompts], device=self.device
        )
        place_BL = torch.arange(longest, device=self.device) - (longest - length_B)[:, None]
        out = self.model.body(
            input_ids=ids_BP,
            attention_mask=(place_BL >= 0).long() if min(lengths) < longest else None,
            position_ids=place_BL[:, -width:].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1], out.past_key_values


def _parts(prompts: Sequence[tuple[int, ...]], overhead: int) -> list[list[tuple[int, ...]]]:
    """Neighbouring prompts, cut where padding would cost more than a pass, and where the tokens of one are enough."""
    parts = []
    for run in cut_by_padding(range(len(prompts)), [len(prompt) for prompt in prompts], overhead):
        held = max(1, PREFILL_TOKENS // len(prompts[run[0]]))
        parts += [[prompts[index] for index in run[start : start + held]] for start in range(0, len(run), held)]
    return parts
