"""Estimators of the KL divergence from samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from grpo_lightning.functional._checks import check_choice, check_mask, check_same_shape
from grpo_lightning.functional.losses import MAX_LOG_RATIO

KLEstimator = Literal["k1", "k2", "k3"]


def kl_divergence(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: KLEstimator = "k3",
    mask: Tensor | None = None,
) -> Tensor:
    """``logprobs``, ``ref_logprobs`` and ``mask`` of one shape -> per-token estimates of that shape (nats).

    For tokens ``y`` drawn from ``pi``, with ``r = pi_ref(y) / pi(y)``, an estimate of ``KL(pi || pi_ref)``:

    - ``k1 = -log r``: unbiased, of high variance, of either sign;
    - ``k2 = (log r)^2 / 2``: biased, of low variance, never negative;
    - ``k3 = (r - 1) - log r``: unbiased, of low variance, never negative; used by GRPO (arXiv 2402.03300, eq. 4).

    Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html; his ``q`` and ``p`` are ``pi`` and
    ``pi_ref`` here. He discusses values only: the gradient of ``k2`` estimates that of the KL, the gradient of ``k1``
    has mean zero (it is useless as a loss), and the gradient of ``k3`` is that of the reverse KL.

    Beyond the source: in ``k3``, ``log r`` is clamped at ``MAX_LOG_RATIO`` before the exponential, so that a token of
    vanishing probability under the policy gives neither infinity nor, times a mask, NaN; its gradient is zero. Small
    ``r`` needs no clamp and keeps its gradient. Positions with a False mask are exactly 0 in value and gradient.

    The same function measures the size of a policy update: ``kl_divergence(old_logprobs, new_logprobs)`` estimates
    ``KL(pi_old || pi_new)`` from tokens drawn from ``pi_old``.
    """
    check_choice("estimator", estimator, KLEstimator)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    log_ratio = ref_logprobs - logprobs
    if mask is not None:
        check_mask(mask)
        log_ratio = torch.where(mask, log_ratio, 0)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    bounded = log_ratio.clamp(max=MAX_LOG_RATIO)
    return torch.expm1(bounded) - bounded
