"""Decoding steps that a GPU launches as one: recorded as a CUDA graph, at fixed shapes and addresses, and replayed.

A step of a small model is hundreds of short kernels, and launching them one by one takes the host longer than the GPU
needs to run them. A recorded step is launched as a whole. It repeats what has been recorded, to the same addresses, so
nothing that changes from one step to the next may be a Python number: the number of rows is padded, attention reads all
columns that the cache has room for, under a mask, and a tensor says which column the tokens go to.

A recording lives no longer than the cache of one rollout, whose addresses it has. It is made of the weights as they are
in the rollout, with the adapter merged, and never sees an update of them; and between rollouts it holds no memory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from grpo_lightning.errors import first_line
from grpo_lightning.speed.base import Shortcut, is_close
from grpo_lightning.speed.decoding_cache import RoomyLayer, RoomyStates, decoding_cache, drop_rows
from grpo_lightning.speed.direct import DirectDecoding, DirectStep
from grpo_lightning.speed.packed import padded_rows

Run = Callable[[], Tensor]


class Recorder(Protocol):
    """Records what a function does to the tensors of a device, which it is made for."""

    def warm_up(self, run: Run) -> Tensor:
        """Run a function as it is, once before it is recorded, and return its result."""

    def record(self, run: Run) -> Run:
        """Record a function, without running it.

        Returns:
            What runs the recording and returns the result, in the same memory each time. It is used until the next
            call of :meth:`record`.
        """


class CUDAGraphs:
    """Records a function's kernels as a CUDA graph.

    A thread has one object of the class at a time, whose graphs end together: when a graph ends, newer versions of
    torch free the workspaces of the stream that it was captured on, and other graphs of that stream still have their
    address (pytorch/pytorch#193402).
    """

    _capturing = threading.Lock()
    """A process captures one graph at a time."""
    _streams = threading.local()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Products have a workspace per stream, and graphs have its address: a stream per thread that decodes, for good.
        streams = vars(self._streams)
        self._stream: torch.cuda.Stream = streams.get(str(device)) or torch.cuda.Stream(device)
        streams[str(device)] = self._stream
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, run: Run) -> Tensor:
        # At the first call libraries make handles, plans and workspaces, which they must not while a graph is captured.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                return run()
        finally:
            # Also if it fails in its midst: what comes next, and what is put back, comes after its last kernel.
            current.wait_stream(self._stream)

    def record(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # The memory of graphs that are not replayed any more serves the next one.
        pool = self._graphs[0].pool() if self._graphs else None
        # Other threads may use the GPU meanwhile.
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        # The outer context leaves the stream of the capture even if that ends with an error, which skips its own exit.
        with self._capturing, torch.cuda.stream(torch.cuda.current_stream(self._device)), capture:
            result = run()
        self._graphs.append(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CUDAGraphs}
"""What records, by type of device."""


class FixedCache(NamedTuple):
    """The layers of a cache at their addresses."""

    layers: list[Any]


Compute = Callable[[Tensor, Tensor, Tensor, FixedCache], Tensor]
"""``(ids_R, position_R, mask_RL, cache) -> [R, ...]``, without host synchronisation and random numbers."""


class GraphedStep:
    """Feeds one token per row, by a function that is recorded at each padded number of rows.

    The first step at a shape runs as it is, the second one is recorded, and it and those after it are replayed. Where
    nothing records, as on a CPU, all run as they are.

    Args:
        compute: what a step does.
        cache: what ``decoding_cache(..., padded=True)`` has made.
        rows: decoding rows; the number may fall, and not rise.
        device: where they are.
    """

    def __init__(self, compute: Compute, cache: Cache, rows: int, device: torch.device) -> None:
        self.compute = compute
        self.layers = cast("list[RoomyLayer | RoomyStates]", cache.layers)
        self.attending = [layer for layer in self.layers if isinstance(layer, RoomyLayer)]
        self._columns = self.attending[0].columns
        held = padded_rows(rows)
        # A row that only fills the shape is at position 0: it sees the column that it writes, and no softmax is over
        # nothing.
        self.ids_R, self.position_R = (torch.zeros(held, dtype=torch.long, device=device) for _ in range(2))
        self.column_1 = torch.zeros(1, dtype=torch.long, device=device)
        recorder = RECORDERS.get(device.type)
        self.recorder = recorder(device) if recorder is not None else None
        self._count = rows
        self._shape = (0, 0)
        self._run: Run | None = None
        self._is_recorded = False

    def __call__(self, ids_R: Tensor, position_R: Tensor, length: int) -> Tensor:
        """Run one token of each row.

        Args:
            ids_R: the tokens.
            position_R: their positions.
            length: columns of the cache that are filled, with those of these tokens.

        Returns:
            What ``compute`` makes of the rows. The next call overwrites it.

        Raises:
            Exception: whatever a device, or the memory that it lacks, leads to. The cache is then as it was before.
        """
        count = len(ids_R)
        shape = self._reserve(length, count)
        self.ids_R[:count].copy_(ids_R)
        self.position_R[:count].copy_(position_R)
        if count < self._count:
            self.position_R[count:] = 0
        self._count = count
        self.column_1.fill_(length - 1)
        if shape != self._shape or self._run is None:
            self._run, self._is_recorded = self._step_of(*shape), False
            result = self._careful(self._run)
            self._shape = shape
        else:
            if not self._is_recorded and self.recorder is not None:
                self._run, self._is_recorded = self.recorder.record(self._run), True
            result = self._run() if self._is_recorded else self._careful(self._run)
        return result[:count]

    def settle(self, length: int, rows: int) -> None:
        """Tell the cache's layers what they hold, for whoever uses them next but this step."""
        for layer in self.attending:
            layer.settle(length, rows)

    def _reserve(self, length: int, rows: int) -> tuple[int, int]:
        """Make room for the tokens.

        Returns:
            Rows and columns of the step. Other columns mean other addresses.
        """
        if length > self._columns:
            self._run = None  # it holds the buffers, which are replaced layer by layer
            for layer in self.attending:
                layer.reserve(length, rows)
            self._columns = self.attending[0].columns
        return padded_rows(rows), self._columns

    def _step_of(self, rows: int, columns: int) -> Run:
        """A step of a shape, as a function of what its tensors hold."""
        ids_R, position_R, column_1 = self.ids_R[:rows], self.position_R[:rows], self.column_1
        cache = FixedCache([layer.at(column_1, rows) for layer in self.layers])
        place_L = torch.arange(columns, device=column_1.device)
        compute = self.compute  # and not self: a cycle would keep the cache until garbage is collected

        def run() -> Tensor:
            start_R1 = (column_1 - position_R)[:, None]
            mask_RL = (place_L >= start_R1) & (place_L <= column_1)
            return compute(ids_R, position_R, mask_RL, cache)

        return run

    def _careful(self, run: Run) -> Tensor:
        """Run a step as it is. One that fails in its midst has shifted some states, and they are put back."""
        states = [state for layer in self.layers if isinstance(layer, RoomyStates) for state in layer.buffers()]
        before = [state.clone() for state in states]
        try:
            return self.recorder.warm_up(run) if self.recorder is not None else run()
        except Exception:
            for state, old in zip(states, before, strict=True):
                state.copy_(old)
            raise


# -- whether a model can ----------------------------------------------------------------------------------------------


class GraphedDecoding(Shortcut):
    """Decoding steps are recorded as CUDA graphs and replayed. The plain way launches their kernels one by one."""

    name = "graphed_decoding"
    runs = "grpo_lightning.speed.graphs:GraphedStep.__call__"
    for_decoding = True
    needs = DirectDecoding

    def wrong_device(self, device_type: str) -> str | None:
        return None if device_type in RECORDERS else "it is for CUDA"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        rotary = getattr(lm.get_decoder(), "rotary_emb", None)
        if "dynamic" in str(getattr(rotary, "rope_type", "")):
            return f"the positions of {type(lm).__name__} depend on the longest row, which the host would have to know"
        return None

    @torch.no_grad()
    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try four steps of three rows, and two after one row has left: run as they are, recorded, and replayed."""
        exact = lm.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(lm.device.type)
        try:
            own, plain = _steps(lm)
        except Exception as error:
            return f"its step fails in {type(lm).__name__} ({first_line(error)})"
        if not all(is_close(found, state, 1e-3 if exact else 0.05) for found, state in zip(own, plain, strict=True)):
            return f"its step gives {type(lm).__name__} other states than one that is not recorded"
        return None


def _steps(lm: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """The states of some steps, recorded and not, after prompts of two lengths."""
    device, step, decoder = lm.device, DirectStep(lm), cast(nn.Module, lm.get_decoder())
    vocabulary = lm.config.get_text_config().vocab_size
    ids_RL = torch.arange(27, device=device).view(3, 9) % min(7, vocabulary)
    mask_RL = torch.ones_like(ids_RL)
    mask_RL[1, 0] = 0
    position_RL = (mask_RL.cumsum(1) - 1).clamp(min=0)
    cache = decoder(
        input_ids=ids_RL[:, :3], attention_mask=mask_RL[:, :3], position_ids=position_RL[:, :3], use_cache=True
    ).past_key_values
    index_R = torch.arange(3, device=device)
    plain_cache = decoding_cache([copy.deepcopy(cache)], [index_R], 6)
    own_cache = decoding_cache([cache], [index_R], 6, padded=True)
    graphed = GraphedStep(step, own_cache, 3, device)
    own, plain = [], []
    for place in range(3, 9):
        if place == 7:
            # The last row takes the place of the first one.
            graphed.settle(place, 3)
            index_R, to, source = torch.tensor([[2, 1], [0, 0], [2, 2]], device=device)
            for decoding in (own_cache, plain_cache):
                drop_rows(decoding, to[:1], source[:1], index_R)
        ids_R, position_R = ids_RL[index_R, place], position_RL[index_R, place]
        own.append(graphed(ids_R, position_R, place + 1).clone())
        plain.append(step(ids_R, position_R, mask_RL[index_R, : place + 1].bool(), plain_cache))
    return own, plain
