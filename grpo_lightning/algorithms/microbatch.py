"""Cutting the rows of an optimizer step into micro-batches by a budget of tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lightning.models.shared_prompt import cut_by_padding, pass_overhead, pass_rows
from grpo_lightning.types import TokenRows

# A micro-batch of so many times a pass's overhead is long enough: more tokens would take memory and save no time.
_ENOUGH = 16
# Of a prompt that was run once, each row keeps a copy of the keys and values: less than an eighth of what a token that
# runs through the model leaves behind for the backward pass.
_FORKED_SHARE = 8


class Microbatch(NamedTuple):
    """Some rows of a step.

    Args:
        rows: their indices.
        tokens: of these rows, with their prompts numbered where each is to be run once.
        real_tokens: that run through the model.
        padded_tokens: the same, padding included.
    """

    rows: Tensor
    tokens: TokenRows
    real_tokens: int
    padded_tokens: int


def microbatches(
    tokens: TokenRows, rows: Tensor, max_tokens: int, share_prompts: bool = True, device_type: str | None = None
) -> list[Microbatch]:
    """The micro-batches of an optimizer step, together naming every row once.

    Two plans are made, and the cheaper is taken, by the count of tokens with padding and the overhead of each pass:

    - Rows sorted by length, cut where the budget is full, or where padding would cost more than another pass does.
    - Rows with the same prompt together, the prompt run once. A group is split if the budget cannot hold it.

    A row that is longer than the budget gets a micro-batch of its own. The longest come first: if the memory does not
    suffice, it shows at once.

    Args:
        tokens: all rows of the rollout.
        rows: indices of those wanted.
        max_tokens: the budget: tokens that run through the model at once, padding included. A shared prompt counts
            once, and an eighth for each of its rows, which keep its keys and values.
        share_prompts: whether the second plan is to be considered.
        device_type: where they will run, if not where the tokens are.
    """
    if not len(rows):
        return []
    chosen = tokens.select(rows)
    overhead = pass_overhead(device_type or tokens.ids_NL.device.type)
    prompts, completions = chosen.prompt_lengths_N.tolist(), chosen.completion_lengths_N.tolist()
    parts = _plain_parts(prompts, completions, max_tokens, overhead)
    numbers_N: Tensor | None = None
    if share_prompts:
        numbers = prompt_numbers(chosen)
        shared = _SharedPlan(numbers, prompts, completions, overhead).parts(max_tokens)
        if _cost(shared, overhead) < _cost(parts, overhead):
            parts, numbers_N = shared, torch.tensor(numbers, device=rows.device)
    chosen = replace(chosen, prompt_of_N=numbers_N)
    cuts = [torch.tensor(part.rows, device=rows.device) for part in parts]
    return [
        Microbatch(rows[cut], chosen.select(cut), part.real, part.padded) for cut, part in zip(cuts, parts, strict=True)
    ]


def prompt_numbers(tokens: TokenRows) -> list[int]:
    """A number for each row's prompt, the same for the same tokens."""
    lengths = tokens.prompt_lengths_N.tolist()
    numbers: dict[bytes, int] = {}
    ids_NP = tokens.ids_NL[:, : max(lengths)].cpu().numpy()
    keys = [ids_P[:length].tobytes() for ids_P, length in zip(ids_NP, lengths, strict=True)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


class _Part(NamedTuple):
    """A micro-batch in the making, in counts of tokens: ``forked`` are those of shared prompts, for every row."""

    rows: list[int]
    real: int
    padded: int
    forked: int
    passes: int

    @property
    def size(self) -> int:
        return self.padded + self.forked // _FORKED_SHARE


def _cost(parts: Iterable[_Part], overhead: int) -> int:
    return sum(part.size + part.passes * overhead for part in parts)


def _plain_parts(prompts: Sequence[int], completions: Sequence[int], max_tokens: int, overhead: int) -> list[_Part]:
    lengths = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts = []
    for run in cut_by_padding(order, [lengths[row] for row in order], overhead):
        while run:
            held = max(1, min(max_tokens, _ENOUGH * overhead) // max(1, lengths[run[0]]))
            rows, run = run[:held], run[held:]
            parts.append(_Part(rows, sum(lengths[row] for row in rows), len(rows) * lengths[rows[0]], 0, 1))
    return parts


class _SharedPlan:
    """Rows with the same prompt together."""

    def __init__(
        self, numbers: Sequence[int], prompts: Sequence[int], completions: Sequence[int], overhead: int
    ) -> None:
        self.numbers = numbers
        self.prompts = prompts
        self.completions = completions
        self.overhead = overhead

    def part(self, rows: Sequence[int]) -> _Part:
        heads = [self.prompts[row] for row in {self.numbers[row]: row for row in rows}.values()]
        lengths = [self.completions[row] for row in rows]
        runs = pass_rows(lengths, self.overhead)
        padded = sum(len(run) * lengths[run[0]] for run in runs)
        return _Part(
            rows=list(rows),
            real=sum(heads) + sum(lengths[row] for run in runs for row in run),
            padded=len(heads) * max(heads) + padded,
            forked=max(heads) * sum(len(run) for run in runs),
            passes=1 + len(runs),
        )

    def parts(self, max_tokens: int) -> list[_Part]:
        """Groups by the length of their prompts, joined while that saves more than their padding costs."""
        order = sorted(range(len(self.numbers)), key=lambda row: (-self.prompts[row], -self.completions[row]))
        groups: dict[int, list[int]] = {}
        for row in order:
            groups.setdefault(self.numbers[row], []).append(row)
        parts: list[_Part] = []
        for group in groups.values():
            if parts:
                last = parts[-1]
                joined = self.part(last.rows + group)
                saved = _cost([last, self.part(group)], self.overhead) - _cost([joined], self.overhead)
                if saved > 0 and joined.size <= min(max_tokens, _ENOUGH * self.overhead):
                    parts[-1] = joined
                    continue
            while group:
                # At least one row, and all that the budget holds: bisection over sizes, which grow with the rows.
                held = bisect_right(
                    range(2, len(group) + 1), max_tokens, key=lambda count: self.part(group[:count]).size
                )
                parts.append(self.part(group[: 1 + held]))
                group = group[1 + held :]
        return parts
