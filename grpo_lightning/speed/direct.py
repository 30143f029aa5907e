"""One decoding step straight from a model's own modules, in the few operations that it takes.

The general forward pass serves everything: it makes masks, looks at options, and copies each key and value for all the
heads that share it. A step that feeds one token a row to a plain model needs none of that, and rollouts are made of
such steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from grpo_lightning.speed.activations import gated_projections
from grpo_lightning.speed.packed import can_pack, product, products

SERVED = ("llama", "qwen2", "qwen3", "lfm2")
"""Model types whose layers are known here; others decode by their own forward pass."""


class DirectStep:
    """Feeds one token a row to a model of one of the :data:`SERVED` types.

    Args:
        lm: in evaluation mode, its adapter merged: adapters are passed by.
        pack: multiply by packed copies of the weights; see :mod:`grpo_lightning.speed.packed`.
    """

    def __init__(self, lm: PreTrainedModel, pack: bool = False) -> None:
        decoder = cast(Any, lm.get_decoder())
        self.embed = decoder.embed_tokens
        self.rotary = decoder.rotary_emb
        self.layers = [_layer(module, pack) for module in decoder.layers]
        self.norm = _norm(_one_of(decoder, "norm", "embedding_norm"))

    def __call__(self, ids_R: Tensor, position_R: Tensor, mask_RL: Tensor | None, cache: Cache) -> Tensor:
        """Run a token of each row.

        Args:
            ids_R: the tokens.
            position_R: their positions.
            mask_RL: bool, the places of the cache that a row may see, this token's included; ``None``: all.
            cache: of the rows; what the tokens add is written to it.

        Returns:
            ``hidden_RD`` behind the last norm.
        """
        hidden_RD = self.embed(ids_R)
        cos_R1S, sin_R1S = self.rotary(hidden_RD[:, None], position_R[:, None])
        half = sin_R1S.shape[-1] // 2
        turn = _Turn(cos_R1S, torch.cat([-sin_R1S[..., :half], sin_R1S[..., half:]], -1))
        mask = None
        if mask_RL is not None:
            # As numbers to be added: made of bits, the kernel makes them anew in every layer.
            mask = torch.where(mask_RL, 0.0, -torch.inf).to(hidden_RD.dtype)[:, None, None]
        for layer, states in zip(self.layers, cache.layers, strict=True):
            hidden_RD = hidden_RD + layer.mix(layer.mix_norm(hidden_RD), states, turn, mask)
            gate_RF, up_RF = layer.gate_up(layer.feed_norm(hidden_RD))
            hidden_RD = hidden_RD + layer.down(nn.functional.silu(gate_RF) * up_RF)
        return self.norm(hidden_RD)


class _Turn(NamedTuple):
    """Rotary position embedding of one token a row; ``sin_R1S`` has the sign that the swapped halves take."""

    cos_R1S: Tensor
    sin_R1S: Tensor

    def __call__(self, heads_RHS: Tensor) -> Tensor:
        swapped_RHS = torch.roll(heads_RHS, heads_RHS.shape[-1] // 2, -1)
        return heads_RHS * self.cos_R1S + swapped_RHS * self.sin_R1S


_Mixer = Callable[[Tensor, Any, _Turn, "Tensor | None"], Tensor]


class _Layer(NamedTuple):
    mix_norm: Callable[[Tensor], Tensor]
    mix: _Mixer
    feed_norm: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], tuple[Tensor, ...]]
    down: Callable[[Tensor], Tensor]


def _layer(module: nn.Module, pack: bool) -> _Layer:
    gate, up, down = gated_projections(_one_of(module, "mlp", "feed_forward"))
    convolution = getattr(module, "conv", None)
    return _Layer(
        mix_norm=_norm(_one_of(module, "input_layernorm", "operator_norm")),
        mix=_attention(cast(Any, module).self_attn, pack) if convolution is None else _convolution(convolution, pack),
        feed_norm=_norm(_one_of(module, "post_attention_layernorm", "ffn_norm")),
        gate_up=_products([gate, up], pack),
        down=_product(down, pack),
    )


def _attention(module: Any, pack: bool) -> _Mixer:
    into = _products([module.q_proj, module.k_proj, module.v_proj], pack)
    out = _product(_one_of(module, "o_proj", "out_proj"), pack)
    query_norm, key_norm = (
        _norm(norm) if norm is not None else None
        for norm in (_any_of(module, "q_norm", "q_layernorm"), _any_of(module, "k_norm", "k_layernorm"))
    )
    size, scale = module.head_dim, module.scaling

    def mix(inner_RD: Tensor, states: DynamicLayer, turn: _Turn, mask: Tensor | None) -> Tensor:
        rows = len(inner_RD)
        query_RHS, key_RKS, value_RKS = (heads.view(rows, -1, size) for heads in into(inner_RD))
        if query_norm is not None and key_norm is not None:
            query_RHS, key_RKS = query_norm(query_RHS), key_norm(key_RKS)
        # Both in one turn: a rotation is many small operations.
        query_RHS, key_RKS = turn(torch.cat([query_RHS, key_RKS], 1)).split([query_RHS.shape[1], key_RKS.shape[1]], 1)
        key_RKLS, value_RKLS = states.update(key_RKS[:, :, None], value_RKS[:, :, None])
        # The heads that share a key stand in the place of a sequence of queries: nothing is copied for them.
        query_RKGS = query_RHS.view(rows, key_RKS.shape[1], -1, size)
        mixed = nn.functional.scaled_dot_product_attention(query_RKGS, key_RKLS, value_RKLS, mask, scale=scale)
        return out(mixed.reshape(rows, -1))

    return mix


def _convolution(module: Any, pack: bool) -> _Mixer:
    into, out, kernel = _product(module.in_proj, pack), _product(module.out_proj, pack), _base(module.conv)

    def mix(inner_RD: Tensor, states: LinearAttentionLayer, turn: _Turn, mask: Tensor | None) -> Tensor:
        before_RD, after_RD, value_RD = into(inner_RD).chunk(3, -1)
        state_RDK = cast(Tensor, states.conv_states[0])
        new_RDK = torch.cat([state_RDK[..., 1:], (before_RD * value_RD).to(state_RDK.dtype)[..., None]], -1)
        state_RDK.copy_(new_RDK)
        # A convolution's kernel rounds once, at its end.
        mixed_RD = (new_RDK.float() * kernel.weight[:, 0].float()).sum(-1)
        if kernel.bias is not None:
            mixed_RD = mixed_RD + kernel.bias.float()
        return out(after_RD * mixed_RD.to(after_RD.dtype))

    return mix


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    shape, weight, epsilon = tuple(module.weight.shape), module.weight, module.variance_epsilon
    if weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return lambda hidden: nn.functional.rms_norm(hidden, shape, weight, epsilon)
    scaled_weight, least = weight * shape[0] ** 0.5, torch.tensor((epsilon * shape[0]) ** 0.5)

    def norm(hidden: Tensor) -> Tensor:
        """The same by the vector's length, in half of the time that torch's takes on a CPU for a few rows."""
        if hidden.dtype is not torch.float32:
            return nn.functional.rms_norm(hidden, shape, weight, epsilon)
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return hidden / torch.hypot(length, least) * scaled_weight

    return norm


def _products(modules: Sequence[nn.Module], pack: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return products([_base(module) for module in modules], pack)


def _product(module: nn.Module, pack: bool) -> Callable[[Tensor], Tensor]:
    return product(_base(module), pack)


def _base(module: Any) -> Any:
    """A layer without its adapter."""
    return getattr(module, "base_layer", module)


def _one_of(module: nn.Module, *names: str) -> Any:
    found = _any_of(module, *names)
    if found is None:
        raise AttributeError(f"{type(module).__name__} has none of {', '.join(names)}")
    return found


def _any_of(module: nn.Module, *names: str) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


# -- whether a model can ----------------------------------------------------------------------------------------------


def has_plain_cache(lm: PreTrainedModel) -> bool:
    """Whether its layers are full attention and convolutions only: of what was before they keep all, or a few last."""
    return all(type(layer) in (DynamicLayer, LinearAttentionLayer) for layer in DynamicCache(config=lm.config).layers)


def is_served(lm: PreTrainedModel) -> bool:
    """Whether the model is of a type that :class:`DirectStep` knows, with the attention that it uses."""
    config = lm.config
    return config.model_type in SERVED and config._attn_implementation == "sdpa" and has_plain_cache(lm)


@torch.no_grad()
def why_not_direct(lm: PreTrainedModel) -> str | None:
    """The reason why this model cannot decode by :class:`DirectStep`, or ``None``: tried against its forward pass.

    Two steps of two rows, one of them padded: the second one reads what the first has written to the cache.

    Args:
        lm: in evaluation mode, its adapter merged.
    """
    if not is_served(lm):
        return f"{type(lm).__name__} is not among {', '.join(SERVED)} with plain layers and sdpa attention"
    try:
        step = DirectStep(lm, can_pack(lm))
    except AttributeError as error:
        return f"{type(lm).__name__} is built in another way than known here ({error})"
    decoder, device = cast(nn.Module, lm.get_decoder()), lm.device
    vocabulary = lm.config.get_text_config().vocab_size
    ids_RL = torch.tensor([[0, 1, 2, 1, 0], [0, 2, 1, 0, 2]], device=device) % vocabulary
    mask_RL = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], device=device)
    position_RL = (mask_RL.cumsum(1) - 1).clamp(min=0)
    prompt = decoder(
        input_ids=ids_RL[:, :3], attention_mask=mask_RL[:, :3], position_ids=position_RL[:, :3], use_cache=True
    )
    own_cache = copy.deepcopy(prompt.past_key_values)
    exact = lm.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)
    for place in (3, 4):
        now, so_far = slice(place, place + 1), slice(place + 1)
        plain = decoder(
            input_ids=ids_RL[:, now], attention_mask=mask_RL[:, so_far], position_ids=position_RL[:, now],
            past_key_values=prompt.past_key_values, use_cache=True,
        ).last_hidden_state[:, 0].float()  # fmt: skip
        own = step(ids_RL[:, place], position_RL[:, place], mask_RL[:, so_far].bool(), own_cache).float()
        # Rounding aside, the two are equal.
        if not (own - plain).norm() <= (1e-3 if exact else 0.05) * plain.norm():
            return f"{type(lm).__name__} decodes to other states than its forward pass"
    return None
