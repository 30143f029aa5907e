"""The output layer applied to a chunk of hidden states at a time, so that ``[M, V]`` logits never exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.functional.in_place import sum_in_place
from grpo_lightning.functional.token_sets import TokenSets, excluded_tokens

_CHUNK_BYTES = 64 * 2**20
_BLOCK_BYTES = {"cpu": 2**20}  # logits per pass of softmax and sums, small enough to stay in a core's caches
_EXCLUDED = -1e20  # the logit of a token that is not allowed: its probability is exactly 0, and 0 times this is 0


def compute_dtype_of(hidden_MD: Tensor, weight_VD: Tensor) -> torch.dtype:
    """The dtype in which a head multiplies: that of an enclosing ``torch.autocast``, or of the hidden states.

    Raises:
        ValueError: outside autocast the two differ.
    """
    device_type = hidden_MD.device.type
    if torch.is_autocast_enabled(device_type) and hidden_MD.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    if weight_VD.dtype != hidden_MD.dtype:
        raise ValueError(
            f"hidden_MD is {hidden_MD.dtype} and weight_VD {weight_VD.dtype}; outside autocast they must be the same."
        )
    return hidden_MD.dtype


def rows_per_chunk(vocabulary: int, compute_dtype: torch.dtype, heads: int = 1) -> int:
    """Rows whose logits take 64 MiB together, of all ``heads`` that are applied to them."""
    softmax_bytes = torch.empty((), dtype=softmax_dtype_of(compute_dtype)).element_size()
    return max(1, _CHUNK_BYTES // (heads * softmax_bytes * vocabulary))


def softmax_dtype_of(compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax and sums: float32, or float64 for float64 products."""
    return torch.float64 if compute_dtype == torch.float64 else torch.float32


class ChunkedHead:
    """The output layer in its compute dtype, with buffers ``[C, V]`` shared by all chunks.

    Sharing saves time as well: page faults on fresh memory cost more than the softmax.
    """

    def __init__(
        self,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        temperature: float,
        softcap: float | None,
        chunk_size: int,
        rows: int,
        compute_dtype: torch.dtype,
        buffer: Tensor | None = None,
        allowed: TokenSets | None = None,
    ) -> None:
        self.weight_VD = weight_VD.to(compute_dtype)
        self.bias_V = None if bias_V is None else bias_V.to(compute_dtype)
        self.allowed = allowed
        self.temperature = temperature
        self.softcap = softcap
        self.chunk_size = chunk_size
        self.rows = rows
        self.softmax_dtype = softmax_dtype_of(compute_dtype)
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


class HeadGradients:
    """Adds up the gradients of the hidden states, the weight and the bias over the chunks of a backward pass.

    Args:
        head: the head in its compute dtype.
        hidden_MD: the hidden states.
        own_weight_VD: the weight itself, to whose ``grad`` may be added inside
            :func:`~grpo_lightning.functional.in_place.adding_in_place`.
        weight_VD: the weight as it was saved for the backward pass.
        bias_V: the bias, or ``None``.
        needed: which of the three need a gradient.
    """

    def __init__(
        self,
        head: ChunkedHead,
        hidden_MD: Tensor,
        own_weight_VD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        needed: Sequence[bool],
    ) -> None:
        needs_hidden, needs_weight, needs_bias = needed
        self._head = head
        self._hidden_MD = hidden_MD
        self._weight_dtype = weight_VD.dtype
        self._bias_dtype = None if bias_V is None else bias_V.dtype
        dtype = head.softmax_dtype
        self._hidden_grad_MD = torch.empty_like(hidden_MD) if needs_hidden else None
        total_VD = sum_in_place(own_weight_VD) if needs_weight and weight_VD.dtype == dtype else None
        self._in_place = total_VD is not None
        if needs_weight and total_VD is None:
            total_VD = torch.zeros_like(weight_VD, dtype=dtype)
        self._weight_grad_VD = total_VD
        self._bias_grad_V = torch.zeros_like(bias_V, dtype=dtype) if needs_bias and bias_V is not None else None

    def add(self, chunk: slice, product_grad_CV: Tensor) -> None:
        """Add those of a chunk.

        Args:
            chunk: its rows.
            product_grad_CV: the gradient of ``W h + b``.
        """
        if self._hidden_grad_MD is not None:
            self._hidden_grad_MD[chunk] = product_grad_CV @ self._head.weight_VD
        if self._weight_grad_VD is not None:
            _add_product(self._weight_grad_VD, product_grad_CV, self._hidden_MD[chunk].to(self._head.weight_VD.dtype))
        if self._bias_grad_V is not None:
            self._bias_grad_V += product_grad_CV.sum(0, dtype=self._head.softmax_dtype)

    def totals(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three gradients; ``None`` where none is needed, or where it has been added in place."""
        weight_VD, bias_V = self._weight_grad_VD, self._bias_grad_V
        return (
            self._hidden_grad_MD,
            None if weight_VD is None or self._in_place else weight_VD.to(self._weight_dtype),
            None if bias_V is None else bias_V.to(self._bias_dtype),
        )


def softmax_blocks(logits_CV: Tensor) -> list[slice]:
    """Return the rows that softmax and sums pass over together: on a CPU what fits into a core's caches, else all."""
    block_bytes = _BLOCK_BYTES.get(logits_CV.device.type, logits_CV.nbytes)
    block_size = max(1, block_bytes // max(1, logits_CV.shape[1] * logits_CV.element_size()))
    return [slice(start, start + block_size) for start in range(0, len(logits_CV), block_size)]


def _add_product(total_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """``total_VD += grad_CV^T hidden_CD``; in slices of V for half precision, which avoids a second ``[V, D]``."""
    if total_VD.dtype == grad_CV.dtype:
        total_VD.addmm_(grad_CV.T, hidden_CD)
        return
    for total_SD, grad_CS in zip(total_VD.split(8192), grad_CV.split(8192, dim=1), strict=True):
        total_SD += grad_CS.T @ hidden_CD
