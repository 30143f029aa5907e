"""One decoding step straight from a model's own modules, in the few operations that it needs.

The general forward pass serves every case: it makes masks, looks at options, and copies each key and value for all the
heads that share it. A step that feeds one token per row to a plain model needs none of that, and rollouts consist of
such steps.

There is no list of model types. A model decodes directly if its modules have the names below, if these modules hold all
of its weights, and if two steps give the states of its own forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from grpo_lightning.errors import first_line
from grpo_lightning.speed.base import Shortcut, is_close
from grpo_lightning.speed.caches import has_plain_cache
from grpo_lightning.speed.packed import fused_linear, linear, product_dtype
from grpo_lightning.speed.recompute import gated_projections


class HasLayers(Protocol):
    """A cache, as far as a step needs it."""

    @property
    def layers(self) -> list[Any]: ...


class DirectStep:
    """Feeds one token per row.

    Args:
        lm: the model in evaluation mode, with its adapter merged or off: only adapters on quantised weights are run.
        pack: multiply by packed copies of the weights; see :mod:`grpo_lightning.speed.packed`.

    Raises:
        AttributeError: the model has no module by one of the expected names.
    """

    def __init__(self, lm: PreTrainedModel, pack: bool = False) -> None:
        decoder = cast(Any, lm.get_decoder())
        # On a CPU, attention of one query to a cache in bfloat16 takes 2 to 7 times as long as to one in float32.
        widens = pack and product_dtype(next(lm.parameters())) is torch.bfloat16
        self.cache_dtype = torch.float32 if widens else None
        """Type of the keys and values in the cache; ``None``: the one in which attention would read them."""
        build = _Builder(pack, _attention_in_float32 if widens else nn.functional.scaled_dot_product_attention)
        self.embed = build.known(decoder.embed_tokens)
        self.rotary = decoder.rotary_emb
        self.layers = [build.layer(module) for module in decoder.layers]
        self.norm = build.norm(_one_of(decoder, "norm", "embedding_norm"))
        self.weights = build.weights
        """What the step computes with; what else the model has is not in its results."""

    def __call__(self, ids_R: Tensor, position_R: Tensor, mask_RL: Tensor | None, cache: HasLayers) -> Tensor:
        """Run one token of each row.

        Args:
            ids_R: the tokens.
            position_R: their positions.
            mask_RL: bool, the places of the cache that a row may see, this token's included; ``None``: all.
            cache: the rows' cache; it is extended by the tokens.

        Returns:
            ``hidden_RD`` after the last norm.
        """
        hidden_RD = self.embed(ids_R)
        cos_R1S, sin_R1S = self.rotary(hidden_RD[:, None], position_R[:, None])
        half = sin_R1S.shape[-1] // 2
        rotary = _Rotary(cos_R1S, torch.cat([-sin_R1S[..., :half], sin_R1S[..., half:]], -1))
        mask = None
        if mask_RL is not None:
            # As numbers to be added: made of bits, the kernel makes them anew in every layer.
            mask = torch.where(mask_RL, 0.0, -torch.inf).to(self.cache_dtype or hidden_RD.dtype)[:, None, None]
        for layer, states in zip(self.layers, cache.layers, strict=True):
            hidden_RD = hidden_RD + layer.mix(layer.mix_norm(hidden_RD), states, rotary, mask)
            gate_RF, up_RF = layer.gate_up(layer.feed_norm(hidden_RD))
            hidden_RD = hidden_RD + layer.down(nn.functional.silu(gate_RF) * up_RF)
        return self.norm(hidden_RD)


class _Rotary(NamedTuple):
    """Rotary position embedding of one token per row; ``sin_R1S`` has the sign that the swapped halves take."""

    cos_R1S: Tensor
    sin_R1S: Tensor

    def __call__(self, heads_RHS: Tensor) -> Tensor:
        swapped_RHS = torch.roll(heads_RHS, heads_RHS.shape[-1] // 2, -1)
        return heads_RHS * self.cos_R1S + swapped_RHS * self.sin_R1S


_Mixer = Callable[[Tensor, Any, _Rotary, "Tensor | None"], Tensor]


def _attention_in_float32(
    query_RKGS: Tensor, key_RKLS: Tensor, value_RKLS: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # it would turn all of the cache into bfloat16
        mixed = nn.functional.scaled_dot_product_attention(query_RKGS.float(), key_RKLS, value_RKLS, mask, scale=scale)
    return mixed.to(query_RKGS.dtype)


class _Layer(NamedTuple):
    mix_norm: Callable[[Tensor], Tensor]
    mix: _Mixer
    feed_norm: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Sequence[Tensor]]
    down: Callable[[Tensor], Tensor]


class _Builder:
    """Makes the functions of a step out of a model's modules, and keeps account of the weights in them."""

    def __init__(self, pack: bool, attend: Callable[..., Tensor]) -> None:
        self.pack, self.attend = pack, attend
        self.weights: set[Tensor] = set()

    def known(self, module: Any) -> Any:
        """A module without its adapter, which is merged; into quantised weights none is, and the module keeps it."""
        base = getattr(module, "base_layer", module)
        self.weights |= set(base.parameters())
        return base if base.weight.is_floating_point() else module

    def layer(self, module: nn.Module) -> _Layer:
        gate, up, down = gated_projections(_one_of(module, "mlp", "feed_forward"))
        convolution = getattr(module, "conv", None)
        return _Layer(
            mix_norm=self.norm(_one_of(module, "input_layernorm", "operator_norm")),
            mix=self.attention(cast(Any, module).self_attn) if convolution is None else self.convolution(convolution),
            feed_norm=self.norm(_one_of(module, "post_attention_layernorm", "ffn_norm")),
            gate_up=fused_linear([self.known(gate), self.known(up)], self.pack),
            down=linear(self.known(down), self.pack),
        )

    def attention(self, module: Any) -> _Mixer:
        projections = [self.known(layer) for layer in (module.q_proj, module.k_proj, module.v_proj)]
        into = fused_linear(projections, self.pack)
        out = linear(self.known(_one_of(module, "o_proj", "out_proj")), self.pack)
        query_norm, key_norm = (
            self.norm(norm) if norm is not None else None
            for norm in (_any_of(module, "q_norm", "q_layernorm"), _any_of(module, "k_norm", "k_layernorm"))
        )
        attend = self.attend
        size, scale, has_positions = module.head_dim, module.scaling, getattr(module, "use_rope", True)

        def mix(inner_RD: Tensor, states: DynamicLayer, rotary: _Rotary, mask: Tensor | None) -> Tensor:
            rows = len(inner_RD)
            query_RHS, key_RKS, value_RKS = (heads.view(rows, -1, size) for heads in into(inner_RD))
            if query_norm is not None and key_norm is not None:
                query_RHS, key_RKS = query_norm(query_RHS), key_norm(key_RKS)
            if has_positions:
                # Both at once: a rotation is many small operations.
                counts = [query_RHS.shape[1], key_RKS.shape[1]]
                query_RHS, key_RKS = rotary(torch.cat([query_RHS, key_RKS], 1)).split(counts, 1)
            key_RKLS, value_RKLS = states.update(key_RKS[:, :, None], value_RKS[:, :, None])
            # Heads that share a key take the place of a sequence of queries: nothing is copied for them.
            query_RKGS = query_RHS.view(rows, key_RKS.shape[1], -1, size)
            mixed = attend(query_RKGS, key_RKLS, value_RKLS, mask, scale=scale)
            return out(mixed.reshape(rows, -1))

        return mix

    def convolution(self, module: Any) -> _Mixer:
        into, out = (linear(self.known(layer), self.pack) for layer in (module.in_proj, module.out_proj))
        kernel = self.known(module.conv)

        def mix(inner_RD: Tensor, states: LinearAttentionLayer, rotary: _Rotary, mask: Tensor | None) -> Tensor:
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

    def norm(self, module: Any) -> Callable[[Tensor], Tensor]:
        module = self.known(module)
        shape, weight, epsilon = tuple(module.weight.shape), module.weight, module.variance_epsilon
        if weight.device.type != "cpu" or weight.dtype is not torch.float32:
            return lambda hidden: nn.functional.rms_norm(hidden, shape, weight, epsilon)
        scaled_weight, least = weight * shape[0] ** 0.5, torch.tensor((epsilon * shape[0]) ** 0.5)

        def norm(hidden: Tensor) -> Tensor:
            """The same by the vector's length, in half the time that torch's takes on a CPU for a few rows."""
            if hidden.dtype is not torch.float32:
                return nn.functional.rms_norm(hidden, shape, weight, epsilon)
            length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
            return hidden / torch.hypot(length, least) * scaled_weight

        return norm


def _one_of(module: nn.Module, *names: str) -> Any:
    found = _any_of(module, *names)
    if found is None:
        raise AttributeError(f"{type(module).__name__} has none of {', '.join(names)}")
    return found


def _any_of(module: nn.Module, *names: str) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


# -- whether a model can ----------------------------------------------------------------------------------------------


class DirectDecoding(Shortcut):
    """Rollouts feed tokens by :class:`DirectStep`. The plain way is the model's own forward pass."""

    name = "direct_decoding"
    runs = "grpo_lightning.speed.direct:DirectStep.__call__"
    for_decoding = True

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        if lm.config._attn_implementation != "sdpa":
            return f"it is for sdpa attention, not {lm.config._attn_implementation}"
        if not has_plain_cache(lm):
            return f"{type(lm).__name__} has other caches than those of full attention and convolutions"
        try:
            step = DirectStep(lm)
        except AttributeError as error:
            return f"{type(lm).__name__} is built differently ({error})"
        for name, weight in cast(nn.Module, lm.get_decoder()).named_parameters():
            if weight not in step.weights and ".lora_" not in name:
                return f"{type(lm).__name__} has weights that it does not know ({name})"
        return None

    @torch.no_grad()
    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try two steps of two rows, one of them padded: the second one reads what the first has written to the cache.

        The rows are at the last positions that the model is made for: some scale attention by the position.
        """
        device = lm.device
        config = lm.config.get_text_config()
        ids_RL = torch.tensor([[0, 1, 2, 1, 0], [0, 2, 1, 0, 2]], device=device) % config.vocab_size
        mask_RL = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], device=device)
        start = max(0, (getattr(config, "max_position_embeddings", None) or 0) - 5)
        position_RL = start + (mask_RL.cumsum(1) - 1).clamp(min=0)
        exact = lm.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)
        try:
            own, plain = _two_steps(lm, ids_RL, mask_RL, position_RL)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"its step fails in {type(lm).__name__} ({first_line(error)})"
        # Rounding aside, the two are equal.
        if not all(is_close(found, state, 1e-3 if exact else 0.05) for found, state in zip(own, plain, strict=True)):
            return f"its step gives {type(lm).__name__} other states than the forward pass"
        return None


def _two_steps(
    lm: PreTrainedModel, ids_RL: Tensor, mask_RL: Tensor, position_RL: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The states of the last two tokens, direct and by the forward pass, after a prompt of the tokens before them."""
    step, decoder, prompt = DirectStep(lm), cast(nn.Module, lm.get_decoder()), ids_RL.shape[1] - 2
    cache = decoder(
        input_ids=ids_RL[:, :prompt], attention_mask=mask_RL[:, :prompt], position_ids=position_RL[:, :prompt],
        use_cache=True,
    ).past_key_values  # fmt: skip
    own_cache = copy.deepcopy(cache)
    own, plain = [], []
    for place in (prompt, prompt + 1):
        so_far = mask_RL[:, : place + 1]
        own.append(step(ids_RL[:, place], position_RL[:, place], so_far.bool(), own_cache))
        out = decoder(
            input_ids=ids_RL[:, place, None], attention_mask=so_far, position_ids=position_RL[:, place, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        plain.append(out.last_hidden_state[:, 0])
    return own, plain
