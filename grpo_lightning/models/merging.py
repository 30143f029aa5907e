"""LoRA merged into the weights: for a while, so that rollouts do not pay for its layers, and for an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.models.adapters import POLICY
from grpo_lightning.models.quantised import is_packed, unpacked


class AdapterMerge:
    """Puts a model's ``default`` adapter into the weights beneath it, and takes it out again, bit for bit.

    Merging in place costs no second set of weights on the device: the pristine ones are kept in host memory. Into a
    bfloat16 base the sum is rounded with a dither: plain rounding would lose the small updates of a young adapter
    altogether.

    An adapter on 4-bit weights stays beside them: into 4 bits it would be rounded away, and unpacked weights would take
    the memory that 4 bits save. ``benchmarks/qlora.py`` compares the two.
    """

    def __init__(self) -> None:
        self.pristine: dict[str, Tensor] = {}
        """Copies of the weights that an adapter goes into, by layer; made at the first merge, for good."""

    @contextmanager
    def applied(self, lm: nn.Module) -> Iterator[None]:
        """Inside, the adapter is in the weights, except for 4-bit ones."""
        layers = {
            name: layer
            for name, layer in lm.named_modules()
            if hasattr(layer, "merged_adapters") and not is_packed(layer)
        }
        for name, layer in layers.items():
            if name not in self.pristine:
                weight = layer.get_base_layer().weight
                self.pristine[name] = torch.empty(
                    weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda, device="cpu"
                ).copy_(weight)
        try:
            for number, layer in enumerate(layers.values()):
                weight = layer.get_base_layer().weight.data
                weight.copy_(_merged(weight, layer, number))
                layer.merged_adapters.append(POLICY)
            yield
        finally:
            for name, layer in layers.items():
                layer.get_base_layer().weight.data.copy_(self.pristine[name], non_blocking=True)
                layer.merged_adapters.clear()


def merged_weights(lm: nn.Module) -> dict[str, Tensor]:
    """All weights of a model with its adapter merged in, by the names that a model without LoRA has.

    4-bit weights are unpacked to the dtype of their products, one after the other into host memory.

    Args:
        lm: the model, inside :meth:`AdapterMerge.applied`.
    """
    packed = {
        name: layer for name, layer in lm.named_modules() if is_packed(layer) and not name.endswith(".base_layer")
    }
    weights = {
        plain: tensor
        for name, tensor in lm.state_dict().items()
        if ".lora_" not in name and (plain := name.replace(".base_layer", "")).rpartition(".weight")[0] not in packed
    }
    for number, (name, layer) in enumerate(packed.items()):
        base = getattr(layer, "base_layer", layer)
        weight = unpacked(base)
        weights[f"{name}.weight"] = (weight if base is layer else _merged(weight, layer, number)).cpu()
    return weights


def _merged(weight: Tensor, layer: Any, number: int) -> Tensor:
    """The weight of a layer with its adapter in it; ``number`` tells the layers of a model apart."""
    return dithered(weight.float() + layer.get_delta_weight(POLICY).float(), weight.dtype, number)


def dithered(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Float32 values rounded to ``dtype``; to bfloat16 up or down with the probability that makes the mean exact.

    A value between two neighbours is rounded to the nearer one otherwise, and a change that is small against their
    distance is lost in every weight at once. The random numbers come from ``seed`` alone, so that equal values round
    alike: each weight flips at its own threshold.
    """
    if dtype is not torch.bfloat16:
        return values.to(dtype)
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # bfloat16 is the upper half of float32: noise in the lower half carries over with the probability wanted.
    return ((values.view(torch.int32) + noise) & -65536).view(torch.float32).to(dtype)
