"""Cutting the rows of an optimizer step into micro-batches by a budget of tokens, with what rows share run once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_lightning.speed.passes import SMALL_PASS, cut_by_padding, pass_rows
from grpo_lightning.types import Sharing, TokenRows

# A micro-batch of 16 times a pass's overhead is long enough: the overhead is then a sixteenth of its time, and more
# tokens would only take memory. (The overhead of a small model: a head's products of fewer rows are slow, however large
# the model is.) `python benchmarks/constants.py passes` prints the time per token.
_ENOUGH = 16
# Each sequence keeps a copy of its prefix's keys and values, and each row the states that it is read from. Such a token
# takes 1/5 (a Llama) to 1/19 (LFM2-shaped, mostly convolutions) of the memory that a token takes which runs, by
# `python benchmarks/constants.py copies`; 1/8 is between the two.
_COPIED_SHARE = 8


class Microbatch(NamedTuple):
    """Some rows of a step.

    Args:
        rows: their indices.
        tokens: the tokens of these rows, with what they share.
        real_tokens: number of tokens that run through the model.
        padded_tokens: the same, padding included.
    """

    rows: Tensor
    tokens: TokenRows
    real_tokens: int
    padded_tokens: int


def microbatches(
    tokens: TokenRows, rows: Tensor, max_tokens: int, share: bool = True, overhead: int = SMALL_PASS
) -> list[Microbatch]:
    """The micro-batches of an optimizer step, together naming every row once.

    A row that is the beginning of another, but for its last token, is read out of that one's pass. For the sequences
    that are left two plans are made, and the cheaper is taken, by the count of tokens with padding and the overhead of
    each pass:

    - Sequences sorted by length, cut where the budget is full, or where padding would cost more than another pass does.
    - Sequences with the same prompt at their front together, the prompt run once. A group is split if the budget cannot
      hold it.

    A sequence that is longer than the budget gets a separate micro-batch. The longest come first: if the memory is not
    enough, the step fails at once.

    Args:
        tokens: all rows of the rollout.
        rows: indices of the rows to pass.
        max_tokens: the budget: tokens that run through the model at once, padding included. A shared prompt counts
            once, and an eighth for each of its sequences, which keep its keys and values; a completion that is read out
            of another row's pass counts an eighth too.
        share: whether rows may share anything; else each runs by itself.
        overhead: overhead of a pass, in tokens: :func:`grpo_lightning.speed.passes.pass_overhead`.
    """
    if not len(rows):
        return []
    chosen = replace(tokens.select(rows), sharing=None)
    sequences = _shared_sequences(chosen) if share else _single_sequences(chosen)
    enough = min(max_tokens, _ENOUGH * max(overhead, SMALL_PASS))
    parts = _plain_parts(sequences, enough, overhead)
    if share:
        prefixed = _prefixed_parts(sequences, max_tokens, enough, overhead)
        use_prefixes = _cost(prefixed, overhead) < _cost(parts, overhead)
        parts = prefixed if use_prefixes else parts
        if use_prefixes or len(sequences) < len(chosen):
            chosen = replace(chosen, sharing=_sharing(sequences, use_prefixes, rows.device))
    cuts = [
        torch.tensor([row for sequence in part.sequences for row in sequence.rows], device=rows.device)
        for part in parts
    ]
    return [
        Microbatch(rows[cut], chosen.select(cut), part.real, part.padded) for cut, part in zip(cuts, parts, strict=True)
    ]


# -- what rows have in common -----------------------------------------------------------------------------------------


class _Sequence(NamedTuple):
    """What one pass runs.

    Args:
        rows: the rows that are read out of it, the longest first.
        length: tokens of the longest.
        prefix: number of the prompt at its front.
        prefix_length: tokens of that prompt.
        copied: completion tokens of the other rows.
    """

    rows: list[int]
    length: int
    prefix: int
    prefix_length: int
    copied: int

    @property
    def tail(self) -> int:
        return self.length - self.prefix_length


def _single_sequences(tokens: TokenRows) -> list[_Sequence]:
    prompts = tokens.prompt_lengths_N.tolist()
    return [_Sequence([row], length, row, prompts[row], 0) for row, length in enumerate(tokens.lengths_N.tolist())]


def _shared_sequences(tokens: TokenRows) -> list[_Sequence]:
    """The longest rows, each with those that are read out of it, and the shortest prompt that it begins with."""
    single, completions = _single_sequences(tokens), tokens.completion_lengths_N.tolist()
    ids_NL = tokens.ids_NL.cpu().numpy()
    prompts = [ids_NL[row, : sequence.prefix_length].tobytes() for row, sequence in enumerate(single)]
    inputs = [ids_NL[row, : sequence.length - 1].tobytes() for row, sequence in enumerate(single)]
    roots, carriers = shortest_beginnings(prompts), longest_continuations(inputs)
    members_of: dict[int, list[int]] = {row: [row] for row in range(len(single)) if carriers[row] == row}
    for row, carrier in enumerate(carriers):
        if row != carrier:
            members_of[carrier].append(row)
    return [
        _Sequence(
            members,
            single[row].length,
            roots[row],
            single[roots[row]].prefix_length,
            sum(completions[member] for member in members[1:]),
        )
        for row, members in members_of.items()
    ]


def shortest_beginnings(keys: Sequence[bytes]) -> list[int]:
    """For each key the index of the shortest that it starts with, itself included; of equal ones, always the same."""
    roots, shortest = [0] * len(keys), -1
    # In this order, all keys that start with another come right after it.
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        if shortest < 0 or not keys[index].startswith(keys[shortest]):
            shortest = index
        roots[index] = shortest
    return roots


def longest_continuations(keys: Sequence[bytes]) -> list[int]:
    """For each key the index of one that starts with it and begins no other; of equal ones, always the same."""
    carriers, longest = [0] * len(keys), -1
    for index in sorted(range(len(keys)), key=keys.__getitem__, reverse=True):
        if longest < 0 or not keys[longest].startswith(keys[index]):
            longest = index
        carriers[index] = longest
    return carriers


def _sharing(sequences: Sequence[_Sequence], use_prefixes: bool, device: torch.device) -> Sharing:
    columns = {
        row: (number, sequence.prefix, sequence.prefix_length if use_prefixes else 0)
        for number, sequence in enumerate(sequences)
        for row in sequence.rows
    }
    return Sharing(*torch.tensor([columns[row] for row in range(len(columns))], device=device).unbind(1))


# -- plans ------------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A micro-batch in the making, in counts of tokens.

    Args:
        sequences: the sequences that it runs.
        real: tokens that run.
        padded: the same, padding included.
        copied: tokens of which a part is kept once more: of prefixes for each sequence, of sequences for each row.
        passes: number of passes of the model.
    """

    sequences: list[_Sequence]
    real: int
    padded: int
    copied: int
    passes: int

    @property
    def size(self) -> int:
        return self.padded + self.copied // _COPIED_SHARE


def _cost(parts: Iterable[_Part], overhead: int) -> int:
    return sum(part.size + part.passes * overhead for part in parts)


def _most(sequences: Sequence[_Sequence], max_tokens: int, part: Callable[[Sequence[_Sequence]], _Part]) -> _Part:
    """A part with as many of the first sequences as the budget holds, and at least one."""
    # Bisection over their number, with which the size grows.
    more = bisect_right(range(2, len(sequences) + 1), max_tokens, key=lambda count: part(sequences[:count]).size)
    return part(sequences[: 1 + more])


def _plain_parts(sequences: Sequence[_Sequence], max_tokens: int, overhead: int) -> list[_Part]:
    order = sorted(sequences, key=lambda sequence: -sequence.length)
    lengths = [sequence.length for sequence in order]
    parts = []
    for run in cut_by_padding(range(len(order)), lengths, overhead):
        rest = [order[index] for index in run]
        while rest:
            parts.append(_most(rest, max_tokens, _plain_part))
            rest = rest[len(parts[-1].sequences) :]
    return parts


def _plain_part(sequences: Sequence[_Sequence]) -> _Part:
    """One pass over sequences that are sorted by length."""
    return _Part(
        sequences=list(sequences),
        real=sum(sequence.length for sequence in sequences),
        padded=len(sequences) * sequences[0].length,
        copied=sum(sequence.copied for sequence in sequences),
        passes=1,
    )


def _prefixed_parts(sequences: Sequence[_Sequence], max_tokens: int, enough: int, overhead: int) -> list[_Part]:
    """Sequences with the same prompt at their front together.

    Groups by the length of their prompts, joined, up to ``enough`` tokens, while that saves more than padding costs.
    """
    groups: dict[int, list[_Sequence]] = {}
    for sequence in sorted(sequences, key=lambda sequence: (-sequence.prefix_length, -sequence.length)):
        groups.setdefault(sequence.prefix, []).append(sequence)
    part_of = partial(_prefixed_part, overhead=overhead)
    parts: list[_Part] = []
    for group in groups.values():
        if parts:
            last = parts[-1]
            joined = part_of(last.sequences + group)
            saved = _cost([last, part_of(group)], overhead) - _cost([joined], overhead)
            if saved > 0 and joined.size <= enough:
                parts[-1] = joined
                continue
        while group:
            parts.append(_most(group, max_tokens, part_of))
            group = group[len(parts[-1].sequences) :]
    return parts


def _prefixed_part(sequences: Sequence[_Sequence], overhead: int) -> _Part:
    """One pass over the prompts, and further ones over what follows them."""
    heads = list({sequence.prefix: sequence.prefix_length for sequence in sequences}.values())
    tails = [sequence.tail for sequence in sequences]
    runs = pass_rows(tails, overhead)
    padded = sum(len(run) * tails[run[0]] for run in runs)
    return _Part(
        sequences=list(sequences),
        real=sum(heads) + sum(tails[index] for run in runs for index in run),
        padded=len(heads) * max(heads) + padded,
        copied=max(heads) * sum(len(run) for run in runs) + sum(sequence.copied for sequence in sequences),
        passes=1 + len(runs),
    )
