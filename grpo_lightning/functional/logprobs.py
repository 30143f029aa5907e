"""Log-probs of given tokens directly from hidden states, without materialising the ``[M, V]`` logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_lightning.functional import chunked_head
from grpo_lightning.functional.chunked_head import (
    ChunkedHead,
    HeadGradients,
    compute_dtype_of,
    rows_per_chunk,
)
from grpo_lightning.functional.token_sets import TokenSets


class TokenLogprobs(NamedTuple):
    """Log-probs of the targets and entropies of their distributions (nats)."""

    logprobs_M: Tensor
    entropy_M: Tensor


def token_logprobs(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    softcap: float | None = None,
    keep_probabilities: bool = True,
    allowed: TokenSets | None = None,
) -> TokenLogprobs:
    """``hidden_MD``, ``weight_VD``, ``targets_M`` -> log-probs ``[M]`` and entropies ``[M]``, float32, in nats.

    ``z = W h + b``, ``p = softmax(z / temperature)``, ``logprob = log p_y`` and ``H = - sum_v p_v log p_v``; with
    ``softcap``, ``z = softcap * tanh((W h + b) / softcap)`` (Gemma 2, arXiv 2408.00118).
    With ``allowed``, the softmax, and so the log-prob, the entropy and their gradients, are over the tokens of each
    row's set alone; the target must be one of them.

    The rows are processed in chunks of ``chunk_size`` (``None``: 64 MiB of logits), so that beyond the gradient of
    ``hidden_MD`` memory does not grow with ``M``. The gradients, with ``dL/d logprob = g`` and ``dL/dH = g_H``:

        ``dL/d(z / temperature)_v = g (1[v = y] - p_v) - g_H p_v (log p_v + H)``

    If the head is frozen (``weight_VD`` and ``bias_V`` need no gradient), the gradient of the log-prob with respect to
    ``h``, ``(W_y - W^T p) / temperature`` up to the factor ``g``, is computed while the chunk's logits exist; the
    backward pass then computes no logits, unless the entropy is differentiated too. If the head is trained, the
    backward pass recomputes the logits of every chunk but the last: with ``keep_probabilities`` the last chunk's
    probabilities are kept, in memory that the backward pass, which begins with that chunk, needs anyway. (With a
    ``softcap``, or if the entropy is differentiated, these logits are recomputed too.) The weight's gradient
    accumulates in one float32 buffer ``[V, D]``, which is ``weight_VD.grad`` itself inside :func:`adding_in_place`.

    The matrix products run in the dtype of ``hidden_MD``, or in that of an enclosing ``torch.autocast``; softmax and
    sums run in float32 (float64 for float64 inputs). Double backward is not implemented.
    """
    _check_arguments(hidden_MD, weight_VD, targets_M, bias_V, temperature, chunk_size, softcap, allowed)
    compute_dtype = compute_dtype_of(hidden_MD, weight_VD)
    if chunk_size is None:
        chunk_size = rows_per_chunk(len(weight_VD), compute_dtype)
    head_is_frozen = not (weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad))
    gradient_in_forward = torch.is_grad_enabled() and hidden_MD.requires_grad and head_is_frozen
    # The slope of a soft cap follows from the logits, not from the probabilities.
    keeps_last = keep_probabilities and torch.is_grad_enabled() and not head_is_frozen and softcap is None
    options = (allowed, temperature, softcap, chunk_size, compute_dtype, gradient_in_forward, keeps_last)
    logprobs_M, entropy_M = _ChunkedLogprobs.apply(hidden_MD, weight_VD, bias_V, targets_M, *options)
    return TokenLogprobs(logprobs_M, entropy_M)


def _check_arguments(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    bias_V: Tensor | None,
    temperature: float,
    chunk_size: int | None,
    softcap: float | None,
    allowed: TokenSets | None,
) -> None:
    if hidden_MD.dim() != 2 or weight_VD.dim() != 2 or hidden_MD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            "hidden_MD and weight_VD must be two-dimensional with the same second size, "
            f"but are {tuple(hidden_MD.shape)} and {tuple(weight_VD.shape)}."
        )
    if targets_M.shape != hidden_MD.shape[:1]:
        raise ValueError(
            f"targets_M must hold one token for each row of hidden_MD {tuple(hidden_MD.shape)}, "
            f"but is {tuple(targets_M.shape)}."
        )
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(
            f"bias_V must hold one number for each row of weight_VD {tuple(weight_VD.shape)}, "
            f"but is {tuple(bias_V.shape)}."
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, but is {temperature}.")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, but is {softcap}.")
    if allowed is not None and allowed.set_M.shape != targets_M.shape:
        raise ValueError(
            f"allowed must hold one set for each row of hidden_MD {tuple(hidden_MD.shape)}, "
            f"but holds {tuple(allowed.set_M.shape)}."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, but is {chunk_size}.")


class _Softmax(NamedTuple):
    """Per row: the target's log-prob, the entropy, and ``log sum_v exp z_v``."""

    logprobs_C: Tensor
    entropy_C: Tensor
    normaliser_C: Tensor


def _softmax(logits_CV: Tensor, targets_C: Tensor, probabilities: bool) -> _Softmax:
    """Compute in place: ``logits_CV`` is overwritten, with the probabilities if ``probabilities`` is True."""
    result = _Softmax(*(logits_CV.new_empty(len(logits_CV)) for _ in range(3)))
    blocks = chunked_head.softmax_blocks(logits_CV)
    exp_BV = torch.empty_like(logits_CV[blocks[0]]) if blocks else logits_CV
    for block in blocks:
        logits_BV = logits_CV[block]
        top_B = logits_BV.amax(1)
        logits_BV.sub_(top_B[:, None])
        logprobs_B = logits_BV.gather(1, targets_C[block, None])[:, 0]
        weights_BV = torch.exp(logits_BV, out=exp_BV[: len(logits_BV)])
        total_B = weights_BV.sum(1)
        log_total_B = total_B.log()
        result.logprobs_C[block] = logprobs_B - log_total_B
        result.normaliser_C[block] = top_B + log_total_B
        # H = log sum_v e^z_v - sum_v p_v z_v
        result.entropy_C[block] = log_total_B - logits_BV.mul_(weights_BV).sum(1).div_(total_B)
        if probabilities:
            torch.div(weights_BV, total_B[:, None], out=logits_BV)
    return result


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        allowed: TokenSets | None,
        temperature: float,
        softcap: float | None,
        chunk_size: int,
        compute_dtype: torch.dtype,
        gradient_in_forward: bool,
        keeps_last: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.head_options = {
            "allowed": allowed, "temperature": temperature, "softcap": softcap, "chunk_size": chunk_size,
            "rows": len(hidden_MD), "compute_dtype": compute_dtype,
        }  # fmt: skip
        # Its ``grad`` may be added to; saved-tensor hooks may return a different tensor.
        ctx.weight_VD = weight_VD
        ctx.last_probs_CV = None
        with torch.autocast(hidden_MD.device.type, enabled=False):
            head = ChunkedHead(weight_VD, bias_V, **ctx.head_options)
            logprobs_M = hidden_MD.new_empty(len(hidden_MD), dtype=head.softmax_dtype)
            entropy_M = torch.empty_like(logprobs_M)
            normaliser_M = torch.empty_like(logprobs_M)
            slope_MD = torch.empty_like(hidden_MD) if gradient_in_forward else None
            for chunk in head.chunks():
                logits_CV = head.logits(hidden_MD[chunk])
                softcap_slope_CV = head.softcap_slope(logits_CV) if slope_MD is not None else None
                kept = keeps_last and chunk.stop == len(hidden_MD)
                result = _softmax(
                    head.restrict(logits_CV, chunk), targets_M[chunk], probabilities=slope_MD is not None or kept
                )
                logprobs_M[chunk], entropy_M[chunk], normaliser_M[chunk] = result
                if slope_MD is not None:
                    logit_grad_CV = _add_at(logits_CV.neg_(), targets_M[chunk], 1.0)
                    slope_MD[chunk] = head.product_grad(logit_grad_CV, softcap_slope_CV) @ head.weight_VD
                if kept:
                    ctx.last_probs_CV = logits_CV
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, targets_M, normaliser_M, entropy_M, slope_MD)
        return logprobs_M, entropy_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_M: Tensor | None, grad_entropy_M: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, targets_M, normaliser_M, entropy_M, slope_MD = ctx.saved_tensors
        no_grads = (None,) * 11
        if grad_logprobs_M is None:
            if grad_entropy_M is None:
                return no_grads
            grad_logprobs_M = torch.zeros_like(normaliser_M)
        elif grad_entropy_M is None and slope_MD is not None:
            return ((slope_MD * grad_logprobs_M.unsqueeze(1)).to(hidden_MD.dtype), *no_grads[1:])

        # Overwritten below, so a second backward pass recomputes these logits too.
        last_probs_CV, ctx.last_probs_CV = ctx.last_probs_CV, None
        with torch.autocast(hidden_MD.device.type, enabled=False):
            head = ChunkedHead(weight_VD, bias_V, **ctx.head_options, buffer=last_probs_CV)
            gradients = HeadGradients(head, hidden_MD, ctx.weight_VD, weight_VD, bias_V, ctx.needs_input_grad[:3])
            for chunk in reversed(head.chunks()):
                grad_C1 = grad_logprobs_M[chunk, None]
                softcap_slope_CV = None
                if last_probs_CV is not None and grad_entropy_M is None:
                    logit_grad_CV, last_probs_CV = _grad_from_probabilities(last_probs_CV, grad_C1), None
                else:
                    logprobs_CV = head.logits(hidden_MD[chunk])
                    softcap_slope_CV = head.softcap_slope(logprobs_CV)
                    head.restrict(logprobs_CV, chunk).sub_(normaliser_M[chunk, None])
                    if grad_entropy_M is None:
                        logit_grad_CV = logprobs_CV.exp_().mul_(-grad_C1)
                    else:
                        probs_CV = logprobs_CV.exp()
                        weights_CV = logprobs_CV.add_(entropy_M[chunk, None]).mul_(-grad_entropy_M[chunk, None])
                        logit_grad_CV = weights_CV.sub_(grad_C1).mul_(probs_CV)
                _add_at(logit_grad_CV, targets_M[chunk], grad_C1[:, 0])
                gradients.add(chunk, head.product_grad(logit_grad_CV, softcap_slope_CV))
        return (*gradients.totals(), *no_grads[3:])


def _grad_from_probabilities(probs_CV: Tensor, grad_C1: Tensor) -> Tensor:
    """Overwrite the probabilities with ``-p_v g``; the target's ``+ g`` is still missing."""
    return probs_CV.mul_(-grad_C1)


def _add_at(values_CV: Tensor, columns_C: Tensor, added: Tensor | float) -> Tensor:
    """Add to one column of each row."""
    values_CV[torch.arange(len(values_CV), device=values_CV.device), columns_C] += added
    return values_CV
