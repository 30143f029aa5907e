"""How far a policy is from a teacher at each token: from the sampled token alone, or over the whole vocabulary.

With ``w = q / p``, the teacher's probability of a token over the policy's, all three divergences are
``D = sum_v p_v f(w_v)``:

- ``reverse_kl``: ``KL(p || q)``, ``f = - log w``;
- ``forward_kl``: ``KL(q || p)``, ``f = w log w``;
- ``jsd``: ``beta KL(q || m) + (1 - beta) KL(p || m)`` with ``m = beta q + (1 - beta) p``, the generalised
  Jensen-Shannon divergence of GKD (arXiv 2306.13649), ``f = beta w log(w / c) - (1 - beta) log c`` with
  ``c = beta w + 1 - beta``. It tends to ``beta`` times the forward KL as ``beta`` goes to 0, and to ``1 - beta`` times
  the reverse KL towards 1.

Their gradient is ``- sum_v p_v A(w_v) grad log p_v`` with ``A = w f' - f + const``: a policy gradient, in which ``A``
is the advantage of a token.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_lightning.functional import chunked_head
from grpo_lightning.functional._checks import check_choice
from grpo_lightning.functional.chunked_head import ChunkedHead, HeadGradients, compute_dtype_of, rows_per_chunk
from grpo_lightning.functional.losses import MAX_LOG_RATIO

Divergence = Literal["reverse_kl", "forward_kl", "jsd"]


class OutputHead(NamedTuple):
    """What turns hidden states into logits ``z / temperature``, as in
    :func:`~grpo_lightning.functional.token_logprobs`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    temperature: float = 1.0
    softcap: float | None = None

    def logits(self, products_RV: Tensor) -> Tensor:
        """The logits, from ``W h + b``."""
        if self.softcap is not None:
            products_RV = self.softcap * torch.tanh(products_RV / self.softcap)
        return products_RV if self.temperature == 1 else products_RV / self.temperature

    def first(self, tokens: int) -> OutputHead:
        """The head of the first tokens of the vocabulary."""
        if tokens == len(self.weight_VD):
            return self
        return self._replace(
            weight_VD=self.weight_VD[:tokens], bias_V=None if self.bias_V is None else self.bias_V[:tokens]
        )


def sampled_advantages(log_ratio_NT: Tensor, divergence: Divergence, beta: float = 0.5) -> Tensor:
    """``log w = log q - log p`` of sampled tokens -> their advantages ``[N, T]``, 0 where ``w`` is 1.

    ``A = log w`` (reverse KL), ``w - 1`` (forward KL), ``(1 - beta) log(beta w + 1 - beta)`` (JSD). For tokens drawn
    from ``p``, the policy gradient with these is an unbiased estimate of minus the gradient of the divergence there.

    ``w`` is at most ``exp(MAX_LOG_RATIO)``; the estimate for the forward KL has a large variance where ``q`` is well
    above ``p``, since such tokens are rarely drawn.
    """
    _check(divergence, beta)
    if divergence == "reverse_kl":
        return log_ratio_NT
    if divergence == "forward_kl":
        return log_ratio_NT.clamp(max=MAX_LOG_RATIO).expm1()
    return (1 - beta) * _log_mixture(log_ratio_NT, beta)


def sampled_divergence(log_ratio_NT: Tensor, divergence: Divergence, beta: float = 0.5) -> Tensor:
    """``log w = log q - log p`` of tokens drawn from ``p`` -> unbiased estimates of the divergence ``[N, T]`` (nats).

    ``f(w) - f'(1) (w - 1)``, which is never negative; for the reverse KL it is Schulman's k3.
    """
    _check(divergence, beta)
    log_ratio_NT = log_ratio_NT.clamp(max=MAX_LOG_RATIO)
    ratio_NT, excess_NT = log_ratio_NT.exp(), log_ratio_NT.expm1()
    if divergence == "reverse_kl":
        return excess_NT - log_ratio_NT
    if divergence == "forward_kl":
        return ratio_NT * log_ratio_NT - excess_NT
    log_mixture_NT = _log_mixture(log_ratio_NT, beta)
    return beta * ratio_NT * (log_ratio_NT - log_mixture_NT) - (1 - beta) * log_mixture_NT


def vocabulary_divergence(
    hidden_MD: Tensor,
    head: OutputHead,
    teacher_hidden_ME: Tensor,
    teacher_head: OutputHead,
    divergence: Divergence,
    beta: float = 0.5,
    chunk_size: int | None = None,
) -> Tensor:
    """Hidden states and heads of the policy and of a teacher -> the divergence at each token ``[M]``, float32, in nats.

    The two may differ in hidden size, dtype, temperature and soft cap. Of heads of differing length (some are padded)
    the common first tokens are taken. The gradient reaches the policy alone:

        ``dD/dz_v = p_v (a_v - sum_u p_u a_u)``, ``a = - A(w)`` of :func:`sampled_advantages`

    The rows are processed in chunks of ``chunk_size`` (``None``: 64 MiB for all logits and what is made of them). If
    the head is frozen, the gradient of the hidden states is computed while a chunk's logits exist; else the backward
    pass recomputes both logits, chunk by chunk. Double backward is not implemented.

    Raises:
        ValueError: the rows of the two do not match.
    """
    _check(divergence, beta)
    if len(hidden_MD) != len(teacher_hidden_ME):
        raise ValueError(
            f"the hidden states must be of the same tokens, but are {len(hidden_MD)} and {len(teacher_hidden_ME)}."
        )
    tokens = min(len(head.weight_VD), len(teacher_head.weight_VD))
    head, teacher_head = head.first(tokens), teacher_head.first(tokens)
    dtypes = [compute_dtype_of(hidden_MD, head.weight_VD), compute_dtype_of(teacher_hidden_ME, teacher_head.weight_VD)]
    if chunk_size is None:
        # Two logits, and as much again while their block is turned into a divergence.
        chunk_size = rows_per_chunk(tokens, dtypes[0], heads=4)
    options = [
        {
            "temperature": one.temperature, "softcap": one.softcap, "chunk_size": chunk_size, "rows": len(hidden_MD),
            "compute_dtype": dtype,
        }
        for one, dtype in zip((head, teacher_head), dtypes, strict=True)
    ]  # fmt: skip
    is_trained = head.weight_VD.requires_grad or (head.bias_V is not None and head.bias_V.requires_grad)
    slope_in_forward = torch.is_grad_enabled() and hidden_MD.requires_grad and not is_trained
    teacher = (teacher_hidden_ME.detach(), *(None if one is None else one.detach() for one in teacher_head[:2]))
    divergence_M: Tensor = _VocabularyDivergence.apply(
        hidden_MD, *head[:2], *teacher, *options, divergence, beta, slope_in_forward
    )
    return divergence_M


def _check(divergence: Divergence, beta: float) -> None:
    check_choice("divergence", divergence, Divergence)
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, but is {beta}: the limits are the two KLs.")


def _log_mixture(log_ratio: Tensor, beta: float) -> Tensor:
    """``log(beta w + 1 - beta)``."""
    return torch.logaddexp(log_ratio + math.log(beta), log_ratio.new_tensor(math.log1p(-beta)))


class _VocabularyDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        teacher_hidden_ME: Tensor,
        teacher_weight_VE: Tensor,
        teacher_bias_V: Tensor | None,
        options: dict[str, Any],
        teacher_options: dict[str, Any],
        divergence: Divergence,
        beta: float,
        slope_in_forward: bool,
    ) -> Tensor:
        ctx.options, ctx.teacher_options, ctx.kind = options, teacher_options, (divergence, beta)
        # Its ``grad`` may be added to; saved-tensor hooks may return a different tensor.
        ctx.weight_VD = weight_VD
        with torch.autocast(hidden_MD.device.type, enabled=False):
            head = ChunkedHead(weight_VD, bias_V, **options)
            teacher = ChunkedHead(teacher_weight_VE, teacher_bias_V, **teacher_options)
            divergence_M = hidden_MD.new_empty(len(hidden_MD), dtype=head.softmax_dtype)
            slope_MD = torch.empty_like(hidden_MD) if slope_in_forward else None
            for chunk in head.chunks():
                logits_CV, teacher_CV = head.logits(hidden_MD[chunk]), teacher.logits(teacher_hidden_ME[chunk])
                cap_slope_CV = head.softcap_slope(logits_CV) if slope_in_forward else None
                divergence_M[chunk] = _divergence(logits_CV, teacher_CV, slope_in_forward, *ctx.kind)
                if slope_MD is not None:
                    slope_MD[chunk] = head.product_grad(logits_CV, cap_slope_CV) @ head.weight_VD
        ctx.save_for_backward(
            hidden_MD, weight_VD, bias_V, teacher_hidden_ME, teacher_weight_VE, teacher_bias_V, slope_MD
        )
        return divergence_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, teacher_hidden_ME, teacher_weight_VE, teacher_bias_V, slope_MD = ctx.saved_tensors
        no_grads = (None,) * 11
        if slope_MD is not None:
            return ((slope_MD * grad_M[:, None]).to(hidden_MD.dtype), *no_grads[1:])
        with torch.autocast(hidden_MD.device.type, enabled=False):
            head = ChunkedHead(weight_VD, bias_V, **ctx.options)
            teacher = ChunkedHead(teacher_weight_VE, teacher_bias_V, **ctx.teacher_options)
            gradients = HeadGradients(head, hidden_MD, ctx.weight_VD, weight_VD, bias_V, ctx.needs_input_grad[:3])
            for chunk in reversed(head.chunks()):
                logits_CV, teacher_CV = head.logits(hidden_MD[chunk]), teacher.logits(teacher_hidden_ME[chunk])
                cap_slope_CV = head.softcap_slope(logits_CV)
                _divergence(logits_CV, teacher_CV, True, *ctx.kind)
                gradients.add(chunk, head.product_grad(logits_CV.mul_(grad_M[chunk, None]), cap_slope_CV))
        return (*gradients.totals(), *no_grads[3:])


def _divergence(logits_CV: Tensor, teacher_CV: Tensor, gradient: bool, divergence: Divergence, beta: float) -> Tensor:
    """The divergence of each row. Overwrites both logits: with ``gradient``, the first with ``dD/dz``."""
    divergence_C = logits_CV.new_empty(len(logits_CV))
    for block in chunked_head.softmax_blocks(logits_CV):
        log_p_BV, log_q_BV = logits_CV[block], teacher_CV[block]
        log_p_BV.sub_(log_p_BV.logsumexp(1, keepdim=True))
        log_q_BV.sub_(log_q_BV.logsumexp(1, keepdim=True))
        p_BV = log_p_BV.exp()
        if divergence == "forward_kl":
            q_BV = log_q_BV.exp()
            divergence_C[block] = log_q_BV.sub_(log_p_BV).mul_(q_BV).sum(1)
            if gradient:
                torch.sub(p_BV, q_BV, out=log_p_BV)
            continue
        if divergence == "reverse_kl":
            minus_advantage_BV = log_p_BV.sub_(log_q_BV)
            mean_B1 = (p_BV * minus_advantage_BV).sum(1, keepdim=True)
            divergence_C[block] = mean_B1[:, 0]
        else:
            log_ratio_BV = log_q_BV.sub_(log_p_BV)
            q_BV = (log_ratio_BV + log_p_BV).exp_()
            log_mixture_BV = _log_mixture(log_ratio_BV, beta)
            minus_advantage_BV = torch.mul(log_mixture_BV, beta - 1, out=log_p_BV)
            mean_B1 = (p_BV * minus_advantage_BV).sum(1, keepdim=True)
            from_teacher_B = log_ratio_BV.sub_(log_mixture_BV).mul_(q_BV).sum(1)
            divergence_C[block] = beta * from_teacher_B + mean_B1[:, 0]
        if gradient:
            minus_advantage_BV.sub_(mean_B1).mul_(p_BV)
    return divergence_C
