"""Group sequence policy optimization."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.functional import sequence_ratio
from grpo_lightning.objectives.clip import Clip


class GSPO(Clip):
    """``J = min( s A, clip(s, 1 - epsilon, 1 + epsilon_high) A )``, with the ratio ``s`` of the whole completion.

    ``s = (pi(y) / pi_old(y))^(1/|y|)``. GSPO, https://arxiv.org/abs/2507.18071, eq. 5 and 7. The equation of the ratio
    is :func:`grpo_lightning.functional.sequence_ratio`. ``ratio_level: sequence`` is its short form, with the
    ``epsilon`` of the flat keys.

    Args:
        epsilon: clip of the ratio. Section 5.1 of the paper: 3e-4 below, 4e-4 above.
        epsilon_high: upper clip; ``None``: ``epsilon``.
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high``; default: no cap. Not in the paper.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "gspo"

    def __init__(self, epsilon: float = 3e-4, epsilon_high: float | None = 4e-4, delta: float | None = None) -> None:
        super().__init__(epsilon, epsilon_high, delta)

    def ratio(self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return sequence_ratio(logprobs_NT, old_logprobs_NT, mask_NT)
