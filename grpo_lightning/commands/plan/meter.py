"""Tensors without memory, and a meter of the memory they would take."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.commands.plan.fakes import Fakes, shares_storage, tensors_in

REAL_ELEMENTS = 2**20
"""Integers up to this many are computed: lengths, masks and positions decide what a program does next."""

MOST_REAL = 2**22
"""Elements of the largest result that is computed from real tensors: a mask of columns by columns is shape alone."""

_ELEMENTWISE = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
"""Operations with as many results as arguments, beside those that torch tags as pointwise."""

_PACKING = "mkldnn::_reorder_linear_weight"  # by its name: not every build of torch has the operator

_DEVICE = torch.ops.prim.device.default

_ASKS = (torch.ops.aten.all.default, torch.ops.aten.any.default)
_READ: dict[torch.dtype, int | bool] = {torch.bool: False, torch.int64: 0, torch.int32: 0}

HOST = "host"
"""The part of tensors that do not lie on the device."""
PACKED = "packed weights"
"""The part of the copies of weights that rollouts multiply by."""


class MemoryMeter(TorchDispatchMode):
    """Runs a program for its memory alone: counts the bytes alive, and their peak, without allocating them.

    Within the mode floating-point tensors are fakes (shapes and types, no storage), and so is what is computed from
    them; small integer tensors are real, so that lengths and masks steer the program as they would. A number read out
    of a fake is 1.0, 0 or False; a mask that is a fake selects everything, and where a program asks whether any or all
    of a fake is true, it is. Every storage counts from the operation that made it until it is freed, and by the
    part it belongs to. What an operation takes inside, and gives back before it returns, is
    not seen, with one exception below.

    Args:
        vocab_size: tensors with this many columns are the part ``logits``.
        expands_products: as on the CPU, where a batched product in bfloat16 copies an operand that was expanded.
    """

    def __init__(self, vocab_size: int | None = None, expands_products: bool = False) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.expands_products = expands_products
        self.part = "other"
        self.live: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self._fakes = Fakes()
        self._storages: dict[int, tuple[str, int]] = {}
        self._total = 0
        self._peak_total = 0

    @property
    def total(self) -> int:
        """Bytes alive on the device."""
        return self._total

    # -- what is read off -------------------------------------------------------------------------------------------

    def reset_peak(self) -> None:
        """Begin a new peak at what is alive now."""
        self.peak, self._peak_total = dict(self.live), self._total

    @contextmanager
    def counting_as(self, part: str) -> Iterator[None]:
        """What is made inside belongs to ``part``."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def assign(self, tensor: Tensor, part: str) -> None:
        """Move a tensor that is alive to another part."""
        key = tensor.untyped_storage()._cdata
        if key in self._storages:
            old, size = self._storages[key]
            self._storages[key] = (part, size)
            self._add(old, -size)
            self._add(part, size)

    # -- the mode ---------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so calls need not disable torch's compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # it is read as often as all operations together are run
        if func.name() == _PACKING:
            # It has no fake form: a copy, of as many bytes.
            func, args = torch.ops.aten.clone.default, args[:1]
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _READ.get(args[0].dtype, 1.0)
        if func in _ASKS and isinstance(args[0], FakeTensor):
            return torch.tensor(True)  # such as whether all gradients are finite
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _without_masks(args[1]), *args[2:])
        # Nearly always the first argument is one: then the others need no look.
        tensors = None if args and isinstance(args[0], FakeTensor) else tensors_in(args, kwargs)
        if tensors is None or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            out = self._fakes.run(func, args, kwargs)
            if tensors is None and shares_storage(func):
                return out
        elif tensors:
            if _makes_large(func, tensors):
                with self._fakes.mode:
                    out = func(*args, **kwargs)
            else:
                out = func(*args, **kwargs)
        else:
            with self._fakes.mode:
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out.numel() <= (1 if out.is_floating_point() else REAL_ELEMENTS):
                out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            self._see(tensor)
        if func is torch.ops.aten.bmm.default and self.expands_products:
            copies = [one for one in args if one.dtype is torch.bfloat16 and one.stride(0) == 0]
            taken = sum(one.numel() * one.element_size() for one in copies)
            self._add(self.part, taken)
            self._add(self.part, -taken)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        columns = tensor.shape[-1] if tensor.dim() > 1 else None
        is_logits = columns is not None and columns == self.vocab_size and self.part != PACKED
        part = "logits" if is_logits else self.part
        self._storages[key] = (part, storage.nbytes())
        self._add(part, storage.nbytes())
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        part, size = self._storages.pop(key)
        self._add(part, -size)

    def _add(self, part: str, size: int) -> None:
        self.live[part] = self.live.get(part, 0) + size
        if part == HOST:
            return
        self._total += size
        if self._total > self._peak_total:
            self._peak_total, self.peak = self._total, dict(self.live)

    # -- modules ----------------------------------------------------------------------------------------------------

    def adopt(self, module: nn.Module) -> None:
        """Put fakes instead of a module's parameters and buffers on the meta device, ties kept."""
        adopted: dict[Tensor, Tensor] = {}
        with self:
            for part in module.modules():
                for tensors in (part._parameters, part._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None and tensor.is_meta:
                            if tensor not in adopted:
                                adopted[tensor] = self._like(tensor)
                            tensors[name] = adopted[tensor]  # type: ignore[assignment]

    def _like(self, tensor: Tensor) -> Tensor:
        with self._fakes.mode:
            fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._see(fake)
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _makes_large(func: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether an operation on real tensors makes a new one of more than :data:`MOST_REAL` elements."""
    if math.prod(tensor.numel() for tensor in tensors) <= MOST_REAL or shares_storage(func):
        return False
    if torch.Tag.pointwise not in func.tags and func not in _ELEMENTWISE:
        return False
    return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors))) > MOST_REAL


def _without_masks(indices: Any) -> list[Any]:
    """Masks as indices: how many elements a mask selects must be known."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype is torch.bool:
            mask = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
            found += mask.nonzero().unbind(1)
        else:
            found.append(index)
    return found
