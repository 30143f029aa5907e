"""Activations recomputed in the backward pass: norms and gates keep their inputs instead of their results.

A transformer layer saves for its backward pass what every operation has read. Half of that are results of cheap
operations on other saved tensors: the normed inputs of the projections, the gated activations. Here these are computed
again when the backward pass needs them, which costs a few per cent of its time. ``docs/performance.md`` has the
numbers.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.speed.base import Shortcut, is_close

_Recipe = Callable[[], Tensor]


class _Kept:
    """Results that can be computed again, by the storage that each lies in."""

    def __init__(self) -> None:
        self._recipes: dict[int, tuple[weakref.ref[Tensor], int, _Recipe]] = {}

    def add(self, result: Tensor, recipe: _Recipe) -> None:
        key = result.untyped_storage()._cdata
        # The address may be taken again as soon as the result is gone.
        gone = weakref.ref(result, lambda _: self._recipes.pop(key, None))
        self._recipes[key] = (gone, result._version, recipe)

    def pack(self, tensor: Tensor) -> Tensor | _Recipe:
        """What the graph holds instead of a tensor: the tensor itself, or how to compute it."""
        if (found := self._recipes.get(tensor.untyped_storage()._cdata)) is None or not tensor.is_contiguous():
            return tensor
        result, version, recipe = found
        whole = result()
        if whole is None or whole.numel() != tensor.numel() or whole.dtype != tensor.dtype:
            return tensor
        if tensor._version != version:
            return tensor  # changed in place since
        shape = tensor.shape
        return lambda: recipe().view(shape)


_kept: ContextVar[_Kept | None] = ContextVar("_kept", default=None)


def _unpack(packed: Tensor | _Recipe) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()


@contextmanager
def recompute_in_backward(lm: nn.Module) -> Iterator[None]:
    """Forward passes inside save no result of a :class:`Norm` or a :class:`GatedFeedForward`, and no cast inputs.

    Under autocast LoRA's layers cast their inputs to the float32 of their weights, and autocast casts them back: every
    layer would save a separate copy. Without the casts the numbers are the same.

    Args:
        lm: the model, with or without LoRA layers.
    """
    from peft.helpers import disable_input_dtype_casting

    autocast = torch.is_autocast_enabled(next(lm.parameters()).device.type)
    kept = _Kept()
    before = _kept.set(kept)
    try:
        with (
            disable_input_dtype_casting(lm, active=autocast),
            torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack),
        ):
            yield
    finally:
        _kept.reset(before)


def _recomputable(result: Tensor, recipe: _Recipe) -> Tensor:
    if torch.compiler.is_compiling():
        return result  # the compiler decides what to recompute, and cannot trace what is kept here
    kept = _kept.get()
    if kept is not None and result.requires_grad:
        kept.add(result, recipe)
    return result


# -- the two operations -----------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Root mean square norm (arXiv 1910.07467) in float32, scaled in the type of its input, as Llama's."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, epsilon = hidden_states, self.variance_epsilon
        if not torch.is_grad_enabled():
            return _scaled(x, _inverse_rms(x, epsilon), self.weight)
        result, inverse = _RMSNorm.apply(x, self.weight, epsilon)
        x, weight = x.detach(), self.weight.detach()
        return _recomputable(result, lambda: _scaled(x, inverse, weight))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class GatedFeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202); its projections keep the names that the model gave them."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = gated_projections(self)
        gate_F, up_F = gate(x), up(x)
        if not torch.is_grad_enabled():
            return cast(Tensor, down(_gated(gate_F, up_F)))
        result = _SiluTimes.apply(gate_F, up_F)
        gate_F, up_F = gate_F.detach(), up_F.detach()
        return cast(Tensor, down(_recomputable(result, lambda: _gated(gate_F, up_F))))


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


def _scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    return (x * inverse).to(x.dtype) * weight


def _gated(gate_F: Tensor, up_F: Tensor) -> Tensor:
    return nn.functional.silu(gate_F).mul_(up_F)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        inverse = _inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        return _scaled(x, inverse, weight), inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (x, weight, inverse) = grads[0], ctx.saved_tensors
        normed, scaled = x * inverse, grad * weight
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        # Of x * r with r = (mean(x^2) + eps)^(-1/2): r * (g - x r * mean(g x r)).
        mean = (scaled * normed).mean(-1, keepdim=True)
        grad_x = (scaled - normed.mul_(mean)).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None


class _SiluTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_F: Tensor, up_F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_F, up_F)
        return _gated(gate_F, up_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad, (gate_F, up_F) = grads[0], ctx.saved_tensors
        grad_gate_F = torch.ops.aten.silu_backward(grad * up_F, gate_F)
        return grad_gate_F, nn.functional.silu(gate_F).mul_(grad)


# -- where they are used ----------------------------------------------------------------------------------------------

_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def gated_projections(module: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Gate, up and down of a feed-forward layer.

    Raises:
        AttributeError: it has none by the names that models give them.
    """
    for names in _NAMES:
        if hasattr(module, names[0]):
            return cast(tuple[nn.Module, nn.Module, nn.Module], tuple(getattr(module, name) for name in names))
    raise AttributeError(f"{type(module).__name__} has no gated projections")


class RecomputedActivations(Shortcut):
    """Norms and gates are computed again in the backward pass. The plain way keeps their results."""

    name = "recomputed_activations"
    runs = "grpo_lightning.speed.recompute:recompute_in_backward"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        if any(_kind_of(module) is not None for module in lm.modules()):
            return None
        return f"{type(lm).__name__} has neither RMS norms nor gated feed-forward layers"

    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try the layers one by one until one computes the same."""
        kinds = ((module, _kind_of(module)) for module in lm.modules())
        if any(kind is not None and _same(module, kind) for module, kind in kinds):
            return None
        return f"the norms and feed-forward layers of {type(lm).__name__} compute something else"

    def install(self, lm: PreTrainedModel, give_up: Callable[[str], None]) -> None:
        install_recomputing_layers(lm)


def install_recomputing_layers(model: nn.Module) -> None:
    """Turn norms and gated feed-forward layers into those above, where they compute the same."""
    for module in model.modules():
        kind = _kind_of(module)
        if kind is not None and _same(module, kind):
            module.__class__ = kind


def _kind_of(module: nn.Module) -> type[nn.Module] | None:
    if isinstance(module, (Norm, GatedFeedForward)):
        return None  # installed already, or the trial would compare a layer with itself
    if len(inspect.signature(type(module).forward).parameters) != 2:  # itself and its input
        return None
    children = {name for name, _ in module.named_children()}
    if not children and set(module._parameters) == {"weight"} and hasattr(module, "variance_epsilon"):
        return Norm
    if any(children - {"act_fn"} == set(names) for names in _NAMES):
        return GatedFeedForward
    return None


@torch.no_grad()
def _same(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what the other kind would: tried on random numbers, unless it has no weights."""
    weight = next(module.parameters())
    if weight.is_meta:
        return True
    first: Any = next(module.children(), module)
    size, dtype = getattr(first, "in_features", weight.shape[-1]), weight.dtype
    if not weight.is_floating_point():  # quantised: neither says what the layer takes
        dtype = getattr(first, "base_layer", first).compute_dtype
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0)).to(weight.device, dtype)
    expected, original = module(x), module.__class__
    module.__class__ = kind
    found = module(x)
    module.__class__ = original
    return is_close(found, expected, 1e-4 if dtype == torch.float32 else 0.02)
