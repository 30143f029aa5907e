"""Weights in 4 or 8 bits, through bitsandbytes: the frozen base under LoRA (QLoRA), and models that are only read."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from grpo_lightning.errors import ConfigError
from grpo_lightning.speed.base import is_close

# Imported by peft, it warns on some CPUs that an optional kernel is missing, which it would get from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

Quantization = Literal["nf4", "int8"]
"""``nf4``: 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3), 4.13 bits per weight.
``int8``: LLM.int8() (arXiv 2208.07339), which quantises the activations too, so nothing is trained through it."""

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit types."""
SCALE_BLOCK = 256
"""Scales that share a float32 scale of their own, under double quantisation."""


def quantization_options(kind: Quantization | None, dtype: torch.dtype, key: str) -> dict[str, Any]:
    """What ``from_pretrained`` needs to quantise the linear layers, all but the output head, while it loads.

    Args:
        kind: the type of the weights; ``None``: nothing is quantised.
        dtype: the dtype of the other weights and of the products.
        key: names the option in an error.

    Raises:
        ConfigError: bitsandbytes is not installed, or does not run on this device.
    """
    if kind is None:
        return {}
    check_bitsandbytes(key, f"{kind} weights")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config}


def check_bitsandbytes(key: str, what: str) -> None:
    """Try bitsandbytes on the device where transformers quantises, before any weights are read.

    Args:
        key: names the option in an error.
        what: needs bitsandbytes.

    Raises:
        ConfigError: bitsandbytes is not installed, or has no kernels for the device.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{key}: {what} need bitsandbytes: pip install 'grpo-lightning[quantised]'")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes import functional

        numbers = torch.ones(BLOCK, device=device)
        functional.dequantize_4bit(*functional.quantize_4bit(numbers, quant_type="nf4"))
    except Exception as error:  # whatever a missing library or kernel raises
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{key}: {what} need bitsandbytes, which does not run on {device} here ({type(error).__name__}: {reason}): "
            "install a build of it for this device, or use weights that are not quantised"
        ) from error


# -- what a config.json says ------------------------------------------------------------------------------------------


def stored_quantization(architecture: PreTrainedConfig) -> dict[str, Any] | None:
    """The ``quantization_config`` of weights that are stored quantised; ``None`` if they are not."""
    stored = getattr(architecture, "quantization_config", None)
    return stored if stored is None or isinstance(stored, dict) else cast(dict[str, Any], stored.to_dict())


def kind_of(stored: dict[str, Any] | None) -> Quantization | None:
    """How bitsandbytes has quantised weights; ``None``: another method has, or none. FP4 takes the bytes of NF4."""
    if stored is None:
        return None
    if stored.get("load_in_4bit"):
        return "nf4"
    return "int8" if stored.get("load_in_8bit") else None


# -- loaded weights ---------------------------------------------------------------------------------------------------


def is_packed(layer: nn.Module) -> bool:
    """Whether the weight of a layer is quantised."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def compute_in(lm: nn.Module, dtype: torch.dtype, key: str) -> None:
    """Let all 4-bit layers of a model unpack their weights to ``dtype``, whatever the dtype was that they come from.

    On some CPUs bitsandbytes repacks a layer at its first forward pass in evaluation mode, rounds the scales to
    bfloat16, and does not undo it: the policy would change with its first rollout. This is switched off.

    Args:
        lm: the model, just loaded. Nothing happens to one without 4-bit layers.
        dtype: the dtype of products.
        key: names the option in an error.

    Raises:
        ConfigError: bitsandbytes unpacks weights of a size in it to other values than their codes and scales say.
    """
    tried: set[int] = set()
    for layer in lm.modules():
        if (state := getattr(getattr(layer, "weight", None), "quant_state", None)) is None:
            continue
        four_bit = cast(Any, layer)
        if four_bit.weight.dtype is not torch.uint8:  # stored in another type, for FSDP
            four_bit.weight.data = four_bit.weight.data.view(torch.uint8).view(-1, 1)
        state.dtype = four_bit.compute_dtype = dtype
        four_bit.compute_type_is_set = True
        four_bit.support_avx512bf16_for_cpu = False
        columns = four_bit.in_features
        if columns not in tried and not is_close(unpacked(four_bit)[:BLOCK], _unpacked_rows(four_bit), 0.01):
            raise ConfigError(
                f"{key}: bitsandbytes unpacks 4-bit weights with {columns} columns to wrong values on "
                f"{four_bit.weight.device.type} (0.50 does on some CPUs if {BLOCK} does not divide them): use another "
                "device, or a model that is not quantised"
            )
        tried.add(columns)


def unpacked(layer: nn.Module) -> Tensor:
    """The weight that a 4-bit layer multiplies by, ``[F, D]`` in the dtype of its products."""
    from bitsandbytes.functional import dequantize_4bit

    weight = cast(Any, layer).weight
    return dequantize_4bit(weight.data, weight.quant_state)


def _unpacked_rows(layer: nn.Module) -> Tensor:
    """The first rows of what :func:`unpacked` gives, ``[min(F, BLOCK), D]``, by the definition of the format."""
    weight = cast(Any, layer).weight
    state, (rows, columns) = weight.quant_state, weight.quant_state.shape
    count = min(rows, BLOCK) * columns
    scales = state.absmax[: -(-count // state.blocksize)]
    if state.nested:
        blocks = torch.arange(len(scales), device=scales.device) // state.state2.blocksize
        scales = state.state2.code[scales.long()] * state.state2.absmax[blocks] + state.offset
    packed = weight.data.view(-1)[: -(-count // 2)].long()
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[:count]
    return (state.code[codes] * scales.repeat_interleave(state.blocksize)[:count]).view(-1, columns)


def unquantised(lm: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or for one with quantised layers the same architecture without: it has no weights."""
    if stored_quantization(lm.config) is None:
        return lm
    config = copy.deepcopy(lm.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = cast(Any, type(lm)(config)).to(lm.dtype)
    plain.generation_config = lm.generation_config
    return cast(PreTrainedModel, plain)


# -- models without weights -------------------------------------------------------------------------------------------


class WeightlessLinear(nn.Linear):
    """A quantised linear layer for rehearsals: its bytes, and the weight that its products unpack.

    Args:
        linear: the layer to replace, on the meta device.
        kind: the type of its weights.
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.kind, self.compute_dtype, count = kind, linear.weight.dtype, linear.weight.numel()

        def frozen(size: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, dtype=dtype, device="meta"), requires_grad=False)

        if kind == "int8":
            self.weight = frozen(count, torch.int8)
            self.scales = frozen(self.out_features, torch.float32)
            return
        blocks = -(-count // BLOCK)
        self.weight = frozen(-(-count // 2), torch.uint8)
        self.scales = frozen(blocks, torch.uint8)
        self.scale_scales = frozen(-(-blocks // SCALE_BLOCK), torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kind == "int8":
            return hidden.new_empty((*hidden.shape[:-1], self.out_features))
        product = _Unpacking.apply(hidden.to(self.compute_dtype), self.bias, self.out_features)
        return product.to(hidden.dtype)


class _Unpacking(torch.autograd.Function):
    """A product with a weight that is unpacked for it, forward and backward, and kept for neither."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.size = (rows, hidden.shape[-1])
        return nn.functional.linear(hidden, _weight_like(hidden, ctx.size), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ _weight_like(grads[0], ctx.size), None, None


def _weight_like(hidden: Tensor, size: tuple[int, int]) -> Tensor:
    """An unpacked weight; its unpacked scales lie beside it while it is made."""
    scales = hidden.new_empty(size[0] * size[1] // BLOCK, dtype=torch.float32)
    weight = hidden.new_empty(size)
    del scales
    return weight


def pack_weightless(lm: PreTrainedModel, kind: Quantization | None, kept: tuple[str, ...] = ()) -> None:
    """Replace the linear layers of a model without weights, all but the output head, by quantised ones.

    Args:
        lm: the model.
        kind: the type of their weights; ``None``: nothing is replaced.
        kept: names of modules in which no layer is quantised.
    """
    if kind is None:
        return
    for module, name, linear in list(_linear_layers(lm, kept)):
        setattr(module, name, WeightlessLinear(linear, kind))


def _linear_layers(lm: PreTrainedModel, kept: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    head = lm.get_output_embeddings()
    for path, module in lm.named_modules():
        for name, child in module.named_children():
            full = f".{path}.{name}."
            if type(child) is nn.Linear and child is not head and not any(f".{part}." in full for part in kept):
                yield module, name, child
