"""Which correction a run makes for the gap between the distribution that sampled and the policy that learns."""

from __future__ import annotations

import logging
from typing import Literal

from torch import Tensor

from grpo_lightning.functional import masked_sequence_weights, truncated_weights

log = logging.getLogger(__name__)

CorrectionMode = Literal["auto", "none", "token", "sequence-mask"]

AUTO_GAP = 1e-3
"""The gap (nats per token) from which ``auto`` corrects. `python benchmarks/sampler_gap.py` prints the gaps: 1e-5 in
float32, where a weight is 1 but for rounding, and 4e-2 in bfloat16."""


class SamplerCorrection:
    """Weights the objective of each token by the policy's probability of it over the sampler's.

    Args:
        mode: ``none``; ``token`` (:func:`~grpo_lightning.functional.truncated_weights`); ``sequence-mask``
            (:func:`~grpo_lightning.functional.masked_sequence_weights`); or ``auto``: :meth:`choose` decides.
        cap: the largest weight.
    """

    def __init__(self, mode: CorrectionMode, cap: float) -> None:
        self.mode = mode
        self.cap = cap
        self.chosen: str | None = None if mode == "auto" else mode
        """The mode that applies; ``None`` until ``auto`` has chosen."""

    def choose(self, gap: float) -> None:
        """Choose for the run by its first measured gap (nats per token)."""
        self.chosen = "token" if gap > AUTO_GAP else "none"
        log.info(
            "sampling and training differ by %.2g nats per token: sampler_correction: auto is %s (token above %g)",
            gap, self.chosen, AUTO_GAP,
        )  # fmt: skip

    def choose_for_older_weights(self) -> None:
        """Choose for a run whose rollouts come from older weights: these are off-policy whatever the first gap is."""
        if self.mode == "auto":
            self.chosen = "token"
        elif self.mode == "none":
            log.warning(
                "model.sampler_correction: none learns from rollouts of older weights (data.rollouts_ahead) as if they "
                "were the policy's own: set it to token, or leave it at auto"
            )

    def weights(
        self, logprobs_NT: Tensor, sampler_logprobs_NT: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Weights of the tokens, constants, and where the cap acted; ``None`` where nothing is corrected.

        Args:
            logprobs_NT: log-probs of the policy before the first update.
            sampler_logprobs_NT: the sampler's log-probs, before truncation by top-k, top-p or min-p.
            mask_NT: True where a token was sampled under the context that it is learned under.
        """
        if self.chosen == "none":
            return None
        assert self.chosen is not None, "choose() comes before the first update"
        weigh = truncated_weights if self.chosen == "token" else masked_sequence_weights
        return weigh(logprobs_NT, sampler_logprobs_NT, mask_NT, self.cap)
