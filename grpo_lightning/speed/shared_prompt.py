"""Hidden states that predict the completions, with what several rows have in common run once for all of them.

A group's rows differ after their prompt only. If it is long, running it once for all of them saves most of the
forward and the backward pass: the prompt leaves a cache, with gradients, which is forked to its completions. Every
layer that can continue from a cache is served, attention and convolution alike, and no layer needs to know.

Some rows are the whole beginning of another: equal completions, and an attempt that another one follows in the same
conversation. Their states are read out of that other row's pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.functional import length_mask
from grpo_lightning.speed.base import Shortcut, is_close
from grpo_lightning.speed.passes import pass_overhead, pass_rows
from grpo_lightning.types import Sharing, TokenRows


class PredictingStates(NamedTuple):
    """The hidden states that completion tokens are predicted from: token ``place_M`` of row ``row_M``'s completion."""

    hidden_MD: Tensor
    row_M: Tensor
    place_M: Tensor

    def targets(self, tokens: TokenRows) -> Tensor:
        """The tokens that are predicted, ``[M]``."""
        return tokens.ids_NL[self.row_M, tokens.prompt_lengths_N[self.row_M] + self.place_M]

    def spread(self, values_M: Tensor, like: TokenRows) -> Tensor:
        """``values_NT`` with 0 after each row's last token."""
        width = int(like.completion_lengths_N.max())
        return values_M.new_zeros(len(like), width).index_put((self.row_M, self.place_M), values_M)


def predicting_states(decoder: nn.Module, tokens: TokenRows) -> PredictingStates:
    """Of all completion tokens, by one pass over rows that are right padded, or as ``tokens.sharing`` says.

    With causal layers (attention and convolution alike) the pads on the right are seen by no token, and no attention
    mask is needed.
    """
    row_M, place_M = length_mask(tokens.completion_lengths_N).nonzero(as_tuple=True)
    # The token at position p is predicted by the hidden state at p - 1, so nothing is predicted by the last one.
    position_M = tokens.prompt_lengths_N[row_M] + place_M - 1
    if tokens.sharing is None:
        ids_NL = tokens.ids_NL[:, : max(1, tokens.ids_NL.shape[1] - 1)]
        hidden_NLD = decoder(input_ids=ids_NL, use_cache=False).last_hidden_state
        return PredictingStates(hidden_NLD[row_M, position_M], row_M, place_M)
    return PredictingStates(_shared_states(decoder, tokens, tokens.sharing, row_M, position_M), row_M, place_M)


def _shared_states(
    decoder: nn.Module, tokens: TokenRows, sharing: Sharing, row_M: Tensor, position_M: Tensor
) -> Tensor:
    """The hidden states at some positions of some rows, every prefix and every sequence being run once."""
    device, lengths_N = tokens.ids_NL.device, tokens.lengths_N
    embedded = _embed(decoder, tokens)
    prefixes = _run_prefixes(decoder, tokens, sharing, embedded)
    # All states end to end, the prefixes' last ones first; and where among them each row's first token would stand.
    states = [] if prefixes is None else [prefixes.last_BD]
    start_N = torch.zeros_like(lengths_N)
    runner_N = _longest(sharing.sequence_of_N, lengths_N)
    runners = runner_N.unique()
    tails = (lengths_N - sharing.prefix_lengths_N)[runners].tolist()
    for run in pass_rows(tails, pass_overhead(decoder)):
        rows_R = runners[run]
        # A convolution continues from a cache by a kernel for decoding, without gradient, where the width is 1.
        width = max(2, tails[run[0]] - 1)
        first_R = sharing.prefix_lengths_N[rows_R]
        # Pads repeat the last token that predicts one: a position past the model's longest would be an error.
        position_RT = torch.minimum(first_R[:, None] + torch.arange(width, device=device), lengths_N[rows_R, None] - 2)
        inputs = {"use_cache": False} if prefixes is None else prefixes.continued(rows_R, position_RT)
        hidden_RTD = decoder(inputs_embeds=embedded(rows_R, position_RT), **inputs).last_hidden_state
        start_N[rows_R] = sum(map(len, states)) + width * torch.arange(len(run), device=device) - first_R
        states.append(hidden_RTD.flatten(0, 1))
    index_M = start_N[runner_N[row_M]] + position_M
    if prefixes is not None:
        ends_prefix_M = position_M == sharing.prefix_lengths_N[row_M] - 1
        index_M = torch.where(ends_prefix_M, prefixes.slot_N[row_M], index_M)
    # Rows that are read from the same place add up their gradients there: in an order that is always the same, which
    # indexing does not keep on several threads.
    return torch.nn.functional.embedding(index_M, torch.cat(states))


def _longest(numbers_N: Tensor, lengths_N: Tensor) -> Tensor:
    """For each row, the longest of those with its number."""
    rows, (found, number_N) = len(lengths_N), numbers_N.unique(return_inverse=True)
    order_N = lengths_N * rows + torch.arange(rows, device=lengths_N.device)
    return torch.zeros_like(found).scatter_reduce(0, number_N, order_N, "amax")[number_N] % rows


class _Prefixes(NamedTuple):
    """The results of the prefixes: a cache, each one's last state, the prefix of each row, a mask if lengths differ."""

    cache: Any
    last_BD: Tensor
    slot_N: Tensor
    mask_BP: Tensor | None

    def continued(self, rows_R: Tensor, position_RT: Tensor) -> dict[str, Any]:
        """The decoder's arguments for some rows to continue from their prefixes."""
        slots_R = self.slot_N[rows_R]
        inputs: dict[str, Any] = {"past_key_values": _fork(self.cache, slots_R), "use_cache": True}
        if self.mask_BP is not None:
            mask_RP = self.mask_BP[slots_R]
            inputs["attention_mask"] = torch.cat([mask_RP, mask_RP.new_ones(position_RT.shape)], dim=1)
            inputs["position_ids"] = position_RT
        return inputs


_Embedded = Callable[[Tensor, Tensor], Tensor]


def _embed(decoder: nn.Module, tokens: TokenRows) -> _Embedded:
    """Embed all tokens at once, for autograd's gradient of an embedding is as large as the vocabulary at every use.

    Returns:
        What gives the embedded tokens of some rows at some positions.
    """
    embedded_NLD = cast(Any, decoder).get_input_embeddings()(tokens.ids_NL)
    width, embedded_MD = embedded_NLD.shape[1], embedded_NLD.flatten(0, 1)
    return lambda rows_R, position_RT: nn.functional.embedding(rows_R[:, None] * width + position_RT, embedded_MD)


def _run_prefixes(decoder: nn.Module, tokens: TokenRows, sharing: Sharing, embedded: _Embedded) -> _Prefixes | None:
    """Prefixes of differing lengths are padded on the left, so that all caches end with the prefix's last token."""
    device = tokens.ids_NL.device
    first_B, slot_N = _longest(sharing.prefix_of_N, sharing.prefix_lengths_N).unique(return_inverse=True)
    lengths_B = sharing.prefix_lengths_N[first_B]
    longest, shortest = int(lengths_B.max()), int(lengths_B.min())
    if longest == 0:
        return None
    position_BP = torch.arange(longest, device=device) - (longest - lengths_B)[:, None]
    inputs: dict[str, Any] = {"inputs_embeds": embedded(first_B, position_BP.clamp(min=0))}
    mask_BP = None
    if shortest < longest:
        mask_BP = (position_BP >= 0).long()
        inputs |= {"attention_mask": mask_BP, "position_ids": position_BP.clamp(min=0)}
    output = decoder(use_cache=True, **inputs)
    return _Prefixes(output.past_key_values, output.last_hidden_state[:, -1], slot_N, mask_BP)


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


# -- whether a model can ----------------------------------------------------------------------------------------------


class SharedPrompts(Shortcut):
    """What rows have in common runs once in passes over them. In the plain way every row runs by itself."""

    name = "shared_prompts"
    runs = "grpo_lightning.speed.shared_prompt:_shared_states"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        return None

    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try a few tokens against plain rows.

        Compared are the hidden states, and the gradient that reaches the embedded tokens, through the cache.
        """
        # Prefixes shorter than LFM2's convolution, which needs what came before them.
        rows, sharing = trial_rows(lm, prefixes=[2, 2, 1], completions=3)
        try:
            plain = states_and_gradient(lm, rows)
            shared = states_and_gradient(lm, replace(rows, sharing=sharing))
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"{type(lm).__name__} cannot continue from a forked cache ({error})"
        # Rounding aside, the two are equal; where a layer forgets its prompt, they differ by as much as there is.
        tolerance = 0.01 if lm.dtype in (torch.float32, torch.float64) else 0.05
        if not all(is_close(found, expected, tolerance) for found, expected in zip(shared, plain, strict=True)):
            return f"{type(lm).__name__} continues from a forked cache to other results"
        return None


def trial_rows(lm: PreTrainedModel, prefixes: Sequence[int], completions: int) -> tuple[TokenRows, Sharing]:
    """Three rows of a few tokens to try passes on, and how they share two prefixes: the first two rows have one.

    Args:
        lm: the model.
        prefixes: tokens of each row's prefix.
        completions: tokens of every completion.
    """
    length = max(prefixes) + completions
    ids_NL = torch.arange(3 * length, device=lm.device).view(3, length) % 7 % lm.config.get_text_config().vocab_size
    ids_NL[1, : prefixes[0]] = ids_NL[0, : prefixes[0]]
    rows = TokenRows(
        ids_NL,
        prompt_lengths_N=torch.tensor(prefixes, device=lm.device),
        completion_lengths_N=torch.full((3,), completions, device=lm.device),
    )
    numbers_N = torch.tensor([0, 0, 1], device=lm.device)
    return rows, Sharing(torch.arange(3, device=lm.device), numbers_N, rows.prompt_lengths_N)


def states_and_gradient(lm: PreTrainedModel, rows: TokenRows) -> tuple[Tensor, Tensor]:
    """``hidden_NTD``, and the gradient of a weighted sum of it with respect to all embedded tokens, added up."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            states = predicting_states(cast(nn.Module, lm.get_decoder()), rows)
            completion = int(rows.completion_lengths_N.max())
            hidden_NTD = states.hidden_MD.new_zeros(len(rows), completion, states.hidden_MD.shape[1])
            hidden_NTD = hidden_NTD.index_put((states.row_M, states.place_M), states.hidden_MD)
            weights_NTD = torch.linspace(-1, 1, hidden_NTD.numel(), device=lm.device).view_as(hidden_NTD)
            gradients = torch.autograd.grad((hidden_NTD.float() * weights_NTD).sum(), embedded)
    finally:
        handle.remove()
    return hidden_NTD.detach(), torch.stack([gradient.float().sum((0, 1)) for gradient in gradients]).sum(0)
