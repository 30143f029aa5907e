"""ZeRO stage 1 (arXiv 1910.02054): every rank keeps the optimizer state of its share of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """torch's ``ZeroRedundancyOptimizer`` of any optimizer, saved and restored one tensor at a time.

    A step updates this rank's parameters and broadcasts them, which gives the weights of the optimizer alone, bit for
    bit. What is saved equals the optimizer's own state: any number of ranks can resume it, sharded or not.

    torch's class sends the state of a whole rank through the memory of the device, keeps what it restored twice, and
    restores the step counts of fused optimizers to the wrong device.

    Args:
        parameters: parameters, or groups of them with options, as ``make`` takes them.
        make: makes the optimizer of some parameters.
    """

    # Of torch's class, which has no types.
    _index_to_param: list[Tensor]
    _param_to_rank: dict[Tensor, int]
    _sync_param_groups: Callable[[Any, Any], None]

    def __init__(self, parameters: Any, make: Callable[[Any], Optimizer]) -> None:
        self._whole: dict[int, dict[str, Any]] | None = None
        parameters = list(parameters)
        # The options of the groups that schedules and loggers read.
        options = make([dict(group) if isinstance(group, dict) else group for group in parameters]).defaults
        super().__init__(parameters, optimizer_class=lambda groups, **_: make(groups), **options)  # type: ignore[arg-type]

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the state of all parameters on one rank, in main memory. Every rank must call this."""
        self._sync_param_groups(self.param_groups, self.optim.param_groups)
        self._whole = {}
        for index, parameter in enumerate(self._index_to_param):
            owner = self._param_to_rank[parameter]
            state = dict(self.optim.state.get(parameter, {}))
            shapes: list[Any] = [[(name, _shape(value)) for name, value in state.items()]]
            dist.broadcast_object_list(shapes, src=owner, device=parameter.device)
            whole = {name: _sent(state.get(name), shape, owner, parameter.device) for name, shape in shapes[0]}
            if self.rank == to and whole:
                self._whole[index] = whole

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`consolidate_state_dict` has gathered on this rank, once; as the optimizer alone would have it."""
        if self._whole is None:
            raise RuntimeError("call consolidate_state_dict on all ranks first")
        whole, self._whole = self._whole, None
        return Optimizer.state_dict(self) | {"state": whole}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore this rank's share of a whole state."""
        owned = {
            index: state
            for index, state in state_dict["state"].items()
            if self._param_to_rank[self._index_to_param[index]] == self.rank
        }
        Optimizer.load_state_dict(self, state_dict | {"state": owned})
        self.optim.state.update(self.state)
        self.state.clear()
        self._sync_param_groups(self.param_groups, self.optim.param_groups)


def _shape(value: Any) -> Any:
    """What the other ranks need to receive a value: a tensor's shape and type, or the value itself."""
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _sent(value: Any, shape: Any, owner: int, device: torch.device) -> Any:
    """The value that the owner has, on all ranks in main memory; a tensor travels on a device."""
    if not isinstance(shape, tuple):
        return shape
    size, dtype = shape
    # A copy also where it is on the device already: what is saved must not change with the next step.
    sent = torch.empty(size, dtype=dtype, device=device) if value is None else value.detach().to(device, copy=True)
    dist.broadcast(sent, src=owner)
    return sent.cpu()


def heaviest_share(groups: Sequence[dict[str, Any]], ranks: int) -> list[Tensor]:
    """The parameters of the rank that has the most, as ``ZeroRedundancyOptimizer`` deals them out.

    The largest come first, each to the rank with the fewest elements so far.
    """
    shares: list[list[Tensor]] = [[] for _ in range(ranks)]
    sizes = [0] * ranks
    for group in groups:
        for parameter in sorted(group["params"], key=lambda parameter: -parameter.numel()):
            rank = sizes.index(min(sizes))
            shares[rank].append(parameter)
            sizes[rank] += parameter.numel()
    return shares[sizes.index(max(sizes))]
