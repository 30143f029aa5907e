"""A CUDA graph on a CPU: operations are recorded with the tensors that they have, and repeated on these.

As on a GPU, what a recording has of Python (numbers, shapes, branches) stays as it was, tensors stay where they are,
and recording runs nothing: states are put back. What a capture would not allow, or would repeat wrongly, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
"""Operations that make the host wait, shapes that depend on values, and random numbers."""
FROM_HOST = {torch.ops.aten.lift_fresh.default, torch.ops.aten.nonzero.default}


class Tape:
    """A recorder of :mod:`grpo_lightning.speed.graphs`; class attributes count what all of them do."""

    alive: ClassVar[WeakSet[Tape]] = WeakSet()
    recorded: ClassVar[list[tuple[int, ...]]] = []
    replayed = 0
    casts = 0
    """Weights that are cast in recordings."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"
        assert not Tape.alive, "graphs of one stream must end before others are captured on it"
        Tape.alive.add(self)

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        return run()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recording = _Recording()
        with recording:
            result = run()
        recording.undo()
        Tape.recorded.append(tuple(result.shape))

        def replay() -> Tensor:
            Tape.replayed += 1
            recording.replay()
            return result

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        allowed = not FORBIDDEN & set(func.tags) and func not in FROM_HOST
        # Attention draws random numbers for its dropout alone, which is 0.
        assert allowed or "scaled_dot_product" in func.name(), f"{func} cannot be captured"
        if func is torch.ops.aten._to_copy.default:
            Tape.casts += args[0].requires_grad
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        out = func(*args, **kwargs)
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _dense((args, kwargs))}
        new = [tensor for tensor in _dense(out) if tensor.untyped_storage().data_ptr() not in inputs]
        self.entries.append((func, args, kwargs, new))
        return out

    def undo(self) -> None:
        """Put back what the operations wrote into, from the last one to the first."""
        while self.before:
            tensor, values = self.before.pop()
            tensor.copy_(values)

    def replay(self) -> None:
        for func, args, kwargs, results in self.entries:
            out = func(*args, **kwargs)
            if results:
                for tensor, values in zip(results, _dense(out), strict=True):
                    tensor.copy_(values)


def _dense(value: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf
