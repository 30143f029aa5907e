"""Operations on tensors without memory, several times as fast as in torch's fake mode."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import in_kernel_invocation_manager

_CPU = torch.device("cpu")
_UNKNOWN = object()


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Kind(Enum):
    VIEW = "its result shares the storage of its first argument"
    IN_PLACE = "it writes into its first argument, which is its result"
    PURE = "it writes into nothing"
    OTHER = "anything else"


class Fakes:
    """Runs operations on fakes: tensors with shape, strides and dtype, and without memory.

    torch's fake mode takes most of its time to find out how an operation is to be run. The layers of a model repeat the
    same operations on equal shapes, so results are remembered by operation and arguments. Views share the storage of
    their argument: for these the kernel that computes shapes is called directly, as the fake mode does in the end. Real
    tensors may be among the arguments; their values do not matter then.

    Attributes:
        mode: torch's fake mode, which runs whatever is not known.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[Hashable, Any] = {}
        self._state = vars(FakeTensor(self.mode, torch.empty(0, device="meta"), _CPU))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of an operation: fakes, of which those of a pure operation are new."""
        kind = _kind(func)
        if kind is _Kind.VIEW:
            return self._view(func, args, kwargs)
        if kind is _Kind.IN_PLACE and isinstance(args[0], FakeTensor):
            return args[0]
        if kind is not _Kind.PURE:
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        layouts = self._known.get(key, _UNKNOWN)
        if layouts is _UNKNOWN or layouts is None:
            out = func(*args, **kwargs)
            if layouts is _UNKNOWN:
                self._known[key] = _layouts(out, args, kwargs)
            return out
        return self._made(layouts)

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with in_kernel_invocation_manager(self.mode):
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            return self._fake(out)
        return type(out)(self._fake(tensor) for tensor in out)

    def _made(self, layouts: Any) -> Any:
        if isinstance(layouts, _Layout):
            made = torch.empty_strided(layouts.shape, layouts.strides, dtype=layouts.dtype, device="meta")
            return self._fake(made)
        return layouts if layouts is None else type(layouts)(self._made(layout) for layout in layouts)

    def _fake(self, made: Tensor) -> Tensor:
        """What ``FakeTensor(mode, made, device)`` makes, without its checks, which take most of the time of a plan."""
        fake: Tensor = Tensor._make_subclass(
            FakeTensor, made, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        fake.__dict__.update(self._state)
        return fake


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among arguments or results, also in lists, tuples and mappings."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            if value:
                found += tensors_in(*value)
        elif isinstance(value, dict) and value:
            found += tensors_in(*value.values())
    return found


def shares_storage(func: Any) -> bool:
    """Whether what an operation returns uses the storage of its first argument."""
    return _kind(func) in (_Kind.VIEW, _Kind.IN_PLACE)


@cache
def _kind(func: Any) -> _Kind:
    if func.is_view or func is torch.ops.aten._unsafe_view.default:
        return _Kind.VIEW
    schema = func._schema
    if not schema.is_mutable:
        return _Kind.PURE
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    returned = [value.alias_info is not None and value.alias_info.is_write for value in schema.returns]
    if written == [True] + [False] * (len(written) - 1) and returned == [True]:
        return _Kind.OTHER if torch.Tag.inplace_view in func.tags else _Kind.IN_PLACE
    return _Kind.OTHER


def _signature(value: Any) -> Hashable:
    """What the layout of a result depends on."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return (type(value), value)  # 1, 1.0 and True are equal, but give different dtypes


def _layouts(out: Any, args: Any, kwargs: Any) -> Any:
    """The layouts of an operation's results, nested as they are; None if results are not new fakes."""
    made = tensors_in(out)
    inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in(args, kwargs)}
    storages = {tensor.untyped_storage()._cdata for tensor in made} | inputs
    new = len(storages) == len(made) + len(inputs) and all(isinstance(tensor, FakeTensor) for tensor in made)
    return _layouts_of(out) if new and made else None


def _layouts_of(out: Any) -> Any:
    if isinstance(out, Tensor):
        return _Layout(tuple(out.shape), out.stride(), out.dtype)
    return out if out is None else type(out)(_layouts_of(part) for part in out)
