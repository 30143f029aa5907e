"""The output layer, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.functional.token_sets import TokenSets, excluded_tokens

_EXCLUDED = -1e20  # the logit of a token that is not allowed: its probability is exactly 0, and 0 times this is 0


def softmax_dtype(compute_dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if compute_dtype == torch.float64 else torch.float32


class ChunkedHead:
    """The output layer in its compute dtype, with buffers ``[C, V]`` shared by all chunks.

    Sharing saves time as well: page faults on fresh memory cost more than the softmax.
    """

    def __init__(
        self,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        allowed: TokenSets | None,
        temperature: float,
        softcap: float | None,
        chunk_size: int,
        rows: int,
        compute_dtype: torch.dtype,
        buffer: Tensor | None = None,
    ) -> None:
        self.weight_VD = weight_VD.to(compute_dtype)
        self.bias_V = None if bias_V is None else bias_V.to(compute_dtype)
        self.allowed = allowed
        self.temperature = temperature
        self.softcap = softcap
        self.chunk_size = chunk_size
        self.rows = rows
        self.softmax_dtype = softmax_dtype(compute_dtype)
        shape = (min(chunk_size, rows), weight_VD.shape[0])
        if buffer is None:
            self._logits_CV = torch.empty(shape, dtype=self.softmax_dtype, device=weight_VD.device)
        else:
            self._logits_CV = buffer
        self._product_CV = self._logits_CV
        if compute_dtype != self.softmax_dtype:
            self._product_CV = torch.empty(shape, dtype=compute_dtype, device=weight_VD.device)

    def chunks(self) -> list[slice]:
        """Split the rows into chunks; the first may be short, the last is full, for its probabilities may be kept."""
        stops = range(self.rows, 0, -self.chunk_size)
        return [slice(max(0, stop - self.chunk_size), stop) for stop in reversed(stops)]

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Compute ``z / temperature``, in a buffer that the next call overwrites."""
        hidden_CD = hidden_CD.to(self.weight_VD.dtype)
        product_CV = self._product_CV[: len(hidden_CD)]
        if self.bias_V is None:
            torch.mm(hidden_CD, self.weight_VD.T, out=product_CV)
        else:
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=product_CV)
        logits_CV = self._logits_CV[: len(hidden_CD)]
        if logits_CV.dtype != product_CV.dtype:
            logits_CV.copy_(product_CV)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1:
            logits_CV.div_(self.temperature)
        return logits_CV

    def restrict(self, logits_CV: Tensor, chunk: slice) -> Tensor:
        """Exclude the tokens that a chunk's rows may not have, in place."""
        if self.allowed is not None:
            bits_CW = self.allowed.bits_SW[self.allowed.set_M[chunk]]
            logits_CV.masked_fill_(excluded_tokens(bits_CW, logits_CV.shape[1]), _EXCLUDED)
        return logits_CV

    def softcap_slope(self, logits_CV: Tensor) -> Tensor | None:
        """Compute ``1 - tanh^2`` from the logits; ``None`` (a slope of 1) without a soft cap."""
        if self.softcap is None:
            return None
        return 1 - (logits_CV * (self.temperature / self.softcap)).square_()

    def product_grad(self, logit_grad_CV: Tensor, slope_CV: Tensor | None) -> Tensor:
        """Turn the gradient of ``z / temperature`` (overwritten) into that of ``W h + b``, in the compute dtype."""
        if slope_CV is not None:
            logit_grad_CV.mul_(slope_CV)
        if self.temperature != 1:
            logit_grad_CV.div_(self.temperature)
        if logit_grad_CV.dtype == self._product_CV.dtype:
            return logit_grad_CV
        return self._product_CV[: len(logit_grad_CV)].copy_(logit_grad_CV)
