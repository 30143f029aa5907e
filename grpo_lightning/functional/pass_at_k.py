"""The unbiased estimator of pass@k."""

from __future__ import annotations

import math


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Estimate the probability that at least one of ``k`` completions is correct, given ``correct`` of ``samples``.

    ``1 - C(n - c, k) / C(n, k)``, arXiv 2107.03374, equation 1: the fraction of the k-subsets of n samples that contain
    a correct one. Integer arithmetic avoids the overflow that the paper works around.

    Raises:
        ValueError: unless ``1 <= k <= samples`` and ``0 <= correct <= samples``.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"pass_at_k needs 1 <= k <= samples and 0 <= correct <= samples, not {k=} {samples=} {correct=}"
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
