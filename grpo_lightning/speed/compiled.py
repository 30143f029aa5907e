"""Decoder layers compiled by ``torch.compile`` in passes with gradients.

The layers are compiled, not the model: those of one kind run the same code, so each kind is compiled once per form of
a pass (rows as they are, prefixes, what follows a prefix), however many layers there are. Batch and length are symbols:
other ones compile nothing, except a batch of one row. A separate critic runs as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as autograd_config
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_lightning.errors import first_line
from grpo_lightning.speed.base import Shortcut, is_close
from grpo_lightning.speed.shared_prompt import SharedPrompts, states_and_gradient, trial_rows

BACKEND = "inductor"
"""What makes code of the operations of a layer."""
NOT_ASKED_FOR = "set model.policy.compile to true to use it"
RECOMPILE_LIMIT = 64
"""As many kinds of layers, times forms of a pass, adapters and dtypes, are compiled at most."""


class CompiledLayers(Shortcut):
    """Passes with gradients run decoder layers that ``torch.compile`` has made. The plain way runs them as they are."""

    name = "compiled_layers"
    runs = "grpo_lightning.speed.compiled:_forward"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        return None if _layers(lm) else f"{type(lm).__name__} does not say which of its modules are layers"

    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try a few tokens, as rows and with shared prefixes: the states, and the gradient of the embedded tokens."""
        # No two sizes are equal, nor 1: a compiler would take one for the other, or for a constant.
        rows, sharing = trial_rows(lm, prefixes=[5, 5, 4], completions=7)
        forms = [rows] if SharedPrompts().why_not(lm) else [rows, replace(rows, sharing=sharing)]
        plain = states_and_gradient(lm, rows)
        try:
            with _installed(lm):
                compiled = [result for form in forms for result in states_and_gradient(lm, form)]
        except Exception as error:  # a compiler, a driver and a system's C++ fail in many ways
            return f"{type(lm).__name__} cannot be compiled ({_clause(error)})"
        tolerance = 0.01 if lm.dtype in (torch.float32, torch.float64) else 0.05
        if not all(
            is_close(found, expected, tolerance) for found, expected in zip(compiled, plain * len(forms), strict=True)
        ):
            return f"{type(lm).__name__} has other results when it is compiled"
        return None

    def install(self, lm: PreTrainedModel, give_up: Callable[[str], None]) -> None:
        if lm.device.type != "meta":  # such a model has nothing to run
            _install(lm, _Compiler(BACKEND, give_up))


class _Compiler:
    """How the layers of one model and its copies are compiled, until one cannot be.

    Args:
        backend: makes code of the operations.
        give_up: called with the reason when a layer cannot be compiled; ``None``: the error is raised.
    """

    def __init__(self, backend: str, give_up: Callable[[str], None] | None = None) -> None:
        self.backend = backend
        self.give_up = give_up
        self.failed = False

    def __deepcopy__(self, _: Any) -> _Compiler:
        return self

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The results of a layer's forward pass, compiled.

        Raises:
            TorchDynamoException: it cannot be compiled; nothing of it has run.
        """
        # Otherwise a backward pass that cannot be compiled is found when it runs.
        with autograd_config.patch(force_non_lazy_backward_lowering=True):
            return _compiled(plain, self.backend)(*args, **kwargs)

    def fail(self, error: TorchDynamoException) -> None:
        if self.give_up is None:
            raise error
        self.failed = True
        self.give_up(f"a layer cannot be compiled ({_clause(error)})")


@functools.cache
def _compiled(plain: Callable[..., Any], backend: str) -> Callable[..., Any]:
    # torch's overloads lack recompile_limit, which its implementation takes.
    return torch.compile(plain, fullgraph=True, dynamic=True, backend=backend, recompile_limit=RECOMPILE_LIMIT)  # type: ignore[call-overload]


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a layer, compiled where gradients are wanted."""
    plain, compiler = type(layer).forward, layer.compiler
    if compiler.failed or not torch.is_grad_enabled():
        return plain(layer, *args, **kwargs)
    cache = kwargs.get("past_key_values")
    own = kwargs if cache is None else kwargs | {"past_key_values": _OneLayer(cache.layers[layer.place])}
    try:
        return compiler.run(plain, layer, *args, **own)
    except TorchDynamoException as error:
        compiler.fail(error)
    return plain(layer, *args, **kwargs)


class _OneLayer:
    """The cache of one layer, whichever number the layer has: code that has seen the number serves that layer alone."""

    def __init__(self, layer: Any) -> None:
        self._cache = Cache(layers=[layer])

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._cache.update(keys, values, 0, *args, **kwargs)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._cache.get_conv_state(0, state_idx)

    def update_conv_state(self, states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        return self._cache.update_conv_state(states, 0, state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._cache.get_recurrent_state(0, state_idx)

    def update_recurrent_state(self, states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        return self._cache.update_recurrent_state(states, 0, state_idx, **kwargs)

    def is_recording_past(self, layer_idx: int) -> bool:
        return self._cache.is_recording_past(0)


def _layers(lm: PreTrainedModel) -> list[Any]:
    modules = cast(nn.Module, lm.get_decoder()).modules()
    return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


def uninstall(lm: PreTrainedModel) -> None:
    """Run the layers as they are: a model object may come from a policy that compiled them."""
    for layer in _layers(lm):
        for name in ("compiler", "place", "forward"):
            vars(layer).pop(name, None)


def _install(lm: PreTrainedModel, compiler: _Compiler) -> None:
    for place, layer in enumerate(_layers(lm)):
        layer.compiler, layer.place = compiler, place
        layer.forward = MethodType(_forward, layer)  # bound again when the model is copied


@contextmanager
def _installed(lm: PreTrainedModel) -> Iterator[None]:
    _install(lm, _Compiler(BACKEND))
    was_training = lm.training
    lm.train()  # as when it learns, so that the code is compiled for that; dropout is off in either mode
    try:
        yield
    finally:
        lm.train(was_training)
        uninstall(lm)


def _clause(error: Exception) -> str:
    cause = getattr(error, "inner_exception", error)  # of a backend; the first line of the outer one names the backend
    return first_line(cause)
