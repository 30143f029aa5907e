"""Weights in 8 or 4 bits, through bitsandbytes: for models that are read and never trained."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.errors import ConfigError

Bits = Literal[8, 4]

NF4_BLOCK = 64
"""Weights that share a float32 scale in bitsandbytes' 4-bit types."""


def quantization_options(bits: Bits | None, dtype: torch.dtype, key: str) -> dict[str, Any]:
    """What ``from_pretrained`` needs to quantise the linear layers, all but the output head, while it loads.

    Args:
        bits: 8 (LLM.int8(), arXiv 2208.07339) or 4 (NF4, arXiv 2305.14314, section 3); ``None``: nothing is quantised.
        dtype: the dtype of the other weights and of the products.
        key: names the option in an error.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if bits is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{key}: {bits}-bit weights need bitsandbytes: pip install 'grpo-lightning[quantised]'")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config}


class WeightlessLinear(nn.Module):
    """A quantised linear layer for rehearsals: its bytes, and the weight that a product of 4-bit weights unpacks.

    Args:
        linear: the layer to replace, on the meta device.
        bits: the bits of a weight.
    """

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        scales = rows if bits == 8 else -(-rows * columns // NF4_BLOCK)
        self.bits = bits
        self.shape = (rows, columns)
        packed = torch.empty(rows * columns * bits // 8, dtype=torch.uint8, device="meta")
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(torch.empty(scales, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        if self.bits == 4:
            return nn.functional.linear(hidden, hidden.new_empty(self.shape), self.bias)
        return hidden.new_empty((*hidden.shape[:-1], self.shape[0]))


def pack_weightless(lm: PreTrainedModel, bits: Bits | None) -> None:
    """Replace the linear layers of a model without weights, all but the output head, by quantised ones."""
    if bits is None:
        return
    head = lm.get_output_embeddings()
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, WeightlessLinear(child, bits))
