"""Hidden states that predict the completions, with each prompt run once for all rows that share it.

A group's rows differ behind their prompt only. Where it is long, running it once for all of them saves most of the
forward and the backward pass: the prompt leaves a cache, with gradients, which is forked to its completions. Every
layer that can continue from a cache is served, attention and convolution alike, and no layer needs to know.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.types import TokenRows


class PredictingStates(NamedTuple):
    """The hidden states that completion tokens are predicted from: token ``place_M`` of row ``row_M``'s completion."""

    hidden_MD: Tensor
    row_M: Tensor
    place_M: Tensor

    def spread(self, values_M: Tensor, like: TokenRows) -> Tensor:
        """``values_NT`` with 0 behind each row's last token."""
        width = int(like.completion_lengths_N.max())
        return values_M.new_zeros(len(like), width).index_put((self.row_M, self.place_M), values_M)


def predicting_states(decoder: nn.Module, tokens: TokenRows) -> PredictingStates:
    """Of all completion tokens, by one pass over rows that are right padded, or with their prompts shared.

    Prompts are shared where ``tokens.prompt_of_N`` numbers them. With causal layers (attention and convolution alike)
    the pads on the right are seen by no token, and no attention mask is needed.
    """
    if tokens.prompt_of_N is not None:
        return _with_shared_prompts(decoder, tokens)
    row_M, place_M = _within(tokens.completion_lengths_N)
    # The token at position p is predicted by the hidden state at p - 1, so nothing is predicted by the last one.
    ids_NL = tokens.ids_NL[:, : max(1, tokens.ids_NL.shape[1] - 1)]
    hidden_NLD = decoder(input_ids=ids_NL, use_cache=False).last_hidden_state
    return PredictingStates(hidden_NLD[row_M, tokens.prompt_lengths_N[row_M] + place_M - 1], row_M, place_M)


def _with_shared_prompts(decoder: nn.Module, tokens: TokenRows) -> PredictingStates:
    device, lengths = tokens.ids_NL.device, tokens.completion_lengths_N.tolist()
    cache, last_BD, slot_N, mask_BP = _run_prompts(decoder, tokens)
    started_M = (tokens.completion_lengths_N > 0).nonzero()[:, 0]
    parts = [PredictingStates(last_BD[slot_N[started_M]], started_M, torch.zeros_like(started_M))]
    for run in pass_rows(lengths, pass_overhead(device.type)):
        rows_R = torch.tensor(run, device=device)
        # A convolution continues from a cache by a kernel for decoding, without gradient, where the width is 1.
        width = max(2, lengths[run[0]] - 1)
        position_RT = tokens.prompt_lengths_N[rows_R, None] + torch.arange(width, device=device)
        # Pads repeat the last token: a position past the model's longest would be an error.
        position_RT = torch.minimum(position_RT, tokens.lengths_N[rows_R, None] - 1)
        inputs = {"input_ids": tokens.ids_NL[rows_R].gather(1, position_RT)}
        if mask_BP is not None:
            mask_RP = mask_BP[slot_N[rows_R]]
            inputs["attention_mask"] = torch.cat([mask_RP, mask_RP.new_ones(position_RT.shape)], dim=1)
            inputs["position_ids"] = position_RT
        hidden_RTD = decoder(past_key_values=_fork(cache, slot_N[rows_R]), use_cache=True, **inputs).last_hidden_state
        row_M, place_M = _within(tokens.completion_lengths_N[rows_R] - 1)
        parts.append(PredictingStates(hidden_RTD[row_M, place_M], rows_R[row_M], place_M + 1))
    return PredictingStates(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _run_prompts(decoder: nn.Module, tokens: TokenRows) -> tuple[Any, Tensor, Tensor, Tensor | None]:
    """The cache of each prompt, its last hidden state, the prompt of each row, and the mask if lengths differ.

    Prompts of differing lengths are padded on the left, so that all caches end with the prompt's last token.
    """
    numbers_N = cast(Tensor, tokens.prompt_of_N).tolist()
    first = {number: row for row, number in reversed(list(enumerate(numbers_N)))}
    slots = {number: slot for slot, number in enumerate(first)}
    device = tokens.ids_NL.device
    first_B = torch.tensor(list(first.values()), device=device)
    lengths_B = tokens.prompt_lengths_N[first_B]
    longest, shortest = int(lengths_B.max()), int(lengths_B.min())
    inputs, mask_BP = {"input_ids": tokens.ids_NL[first_B, :longest]}, None
    if shortest < longest:
        position_BP = torch.arange(longest, device=device) - (longest - lengths_B)[:, None]
        mask_BP = (position_BP >= 0).long()
        position_BP = position_BP.clamp(min=0)
        inputs = {"input_ids": tokens.ids_NL[first_B].gather(1, position_BP), "position_ids": position_BP}
        inputs["attention_mask"] = mask_BP
    output = decoder(use_cache=True, **inputs)
    slot_N = torch.tensor([slots[number] for number in numbers_N], device=device)
    return output.past_key_values, output.last_hidden_state[:, -1], slot_N, mask_BP


def _fork(cache: Any, slots_R: Tensor) -> Any:
    """A cache for some rows, each with its prompt's states; the one forked from stays as it is."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in fork.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    fork.reorder_cache(slots_R)
    return fork


def _within(lengths_N: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place of everything that lies within rows of these lengths."""
    width = max(0, int(lengths_N.max())) if len(lengths_N) else 0
    row_M, place_M = (torch.arange(width, device=lengths_N.device) < lengths_N[:, None]).nonzero(as_tuple=True)
    return row_M, place_M


# -- whether a model can ----------------------------------------------------------------------------------------------


def why_not_shared(lm: PreTrainedModel) -> str | None:
    """The reason why this model's prompts cannot be shared, or ``None``: tried on a few tokens, against plain rows.

    Compared are the hidden states, and the gradient that reaches the embedded tokens, through the cache.
    """
    ids_NL = torch.tensor([[0, 1, 2, 1, 0], [0, 1, 2, 2, 1], [2, 1, 0, 2, 0]], device=lm.device)
    rows = TokenRows(
        ids_NL % lm.config.get_text_config().vocab_size,
        prompt_lengths_N=torch.tensor([2, 2, 1], device=lm.device),
        completion_lengths_N=torch.tensor([3, 3, 3], device=lm.device),
    )
    numbers_N = torch.tensor([0, 0, 1], device=lm.device)
    decoder = cast(nn.Module, lm.get_decoder())
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    found = []
    handle = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        for prompt_of_N in (None, numbers_N):
            embedded.clear()
            with torch.enable_grad():
                states = predicting_states(decoder, replace(rows, prompt_of_N=prompt_of_N))
                hidden_NTD = states.hidden_MD.new_zeros(3, 3, states.hidden_MD.shape[1])
                hidden_NTD = hidden_NTD.index_put((states.row_M, states.place_M), states.hidden_MD)
                weights_NTD = torch.linspace(-1, 1, hidden_NTD.numel(), device=lm.device).view_as(hidden_NTD)
                gradients = torch.autograd.grad((hidden_NTD.float() * weights_NTD).sum(), embedded)
            found += [hidden_NTD.detach().float(), torch.stack([one.float().sum((0, 1)) for one in gradients]).sum(0)]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"{type(lm).__name__} cannot continue from a forked cache ({error})"
    finally:
        handle.remove()
    # Rounding aside, the two are equal; where a layer forgets its prompt, they differ by as much as there is.
    tolerance = 0.01 if lm.dtype in (torch.float32, torch.float64) else 0.05
    for plain, shared in zip(found[:2], found[2:], strict=True):
        if not (shared - plain).norm() <= tolerance * plain.norm():
            return f"{type(lm).__name__} continues from a forked cache to other results"
    return None


# -- what a pass costs ------------------------------------------------------------------------------------------------

_PASS_TOKENS = {"cpu": 64, "cuda": 2048}


def pass_overhead(device_type: str) -> int:
    """How many tokens could be run in the time that a forward and backward pass takes beside its tokens."""
    return _PASS_TOKENS.get(device_type, 512)


def pass_rows(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Completions that continue from a cache, the longest first, cut into passes where padding would cost more.

    A completion's last token predicts nothing, so those of one token need no pass at all.
    """
    rows = sorted((row for row, length in enumerate(lengths) if length > 1), key=lambda row: -lengths[row])
    return cut_by_padding(rows, [lengths[row] for row in rows], overhead)


def cut_by_padding(rows: Sequence[int], lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Rows that are sorted by length, cut where their padding would come to cost more than another pass."""
    runs: list[list[int]] = []
    longest = padding = 0
    for row, length in zip(rows, lengths, strict=True):
        padding += longest - length
        if not runs or padding > overhead:
            runs.append([])
            longest, padding = length, 0
        runs[-1].append(row)
    return runs
