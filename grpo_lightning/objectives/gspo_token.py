"""The token-level form of group sequence policy optimization."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.functional import sequence_token_ratio
from grpo_lightning.objectives.gspo import GSPO


class GSPOToken(GSPO):
    """``J = min( s_it A_it, clip(s_it, 1 - epsilon, 1 + epsilon_high) A_it )``, with ``s_it = sg(s_i) pi / sg(pi)``.

    The value and the clip of :class:`GSPO`, while each token's gradient has its own advantage. With one advantage per
    completion, as in GRPO, the gradient is that of :class:`GSPO`; it differs under :class:`PPOModule` and
    ``top_entropy_share``. GSPO-token, https://arxiv.org/abs/2507.18071, section 4.3, eq. 13 and 14. The equation of the
    ratio is :func:`grpo_lightning.functional.sequence_token_ratio`. The options are those of :class:`GSPO`.

    Args:
        epsilon: clip of the ratio. Section 5.1 of the paper: 3e-4 below, 4e-4 above.
        epsilon_high: upper clip; ``None``: ``epsilon``.
        delta: cap of the ratio for negative advantages, above ``1 + epsilon_high``; default: no cap. Not in the paper.

    Raises:
        ConfigError: an option is out of its range.
    """

    name = "gspo-token"

    def ratio(self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return sequence_token_ratio(logprobs_NT, old_logprobs_NT, mask_NT)
