"""Direct decoding through a model's modules, compared with its forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.speed import packed
from grpo_lightning.speed.direct import DirectDecoding, DirectStep
from grpo_lightning.speed.packed import PackedWeights
from tests.sampling import assert_similar, generate
from tests.tiny import tiny_config, tiny_tokenizer
from tests.toy import half

PROMPTS = [[1, 30, 40, 50], [1, 60, 61, 62, 63, 64, 65, 66], [1, 90]]
SIZES = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": tiny_config("llama"),
    "llama with biases": tiny_config("llama", attention_bias=True, mlp_bias=True),
    "llama with scaled rope": tiny_config(
        "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "llama with every head its own key": tiny_config("llama", num_key_value_heads=4),
    "qwen2, whose projections have biases": Qwen2Config(**SIZES),
    "qwen3, which norms queries and keys": Qwen3Config(head_dim=16, **SIZES),
    "lfm2": tiny_config("lfm2"),
    "lfm2 with biases": tiny_config("lfm2", conv_bias=True),
}


def policy_of(config: PreTrainedConfig, folder: Path, **options: Any) -> Policy:
    """Make all weights random, biases and norms included, so that an omission changes the result."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.25)
    with torch.no_grad():
        model.get_input_embeddings().weight[[2, 7]] *= 3
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Policy(PolicyConfig(path=str(folder), **options))


@pytest.mark.parametrize(
    ("name", "prompts", "small"),
    # Padded prompts and those of one length; transposed weights and packed ones.
    half(list(CONFIGS), [PROMPTS, [PROMPTS[0], PROMPTS[0][::-1]]], [packed.MAX_TRANSPOSED_ELEMENTS, 0]),
)
def test_rollouts_equal_those_of_the_forward_pass(
    name: str, prompts: list[list[int]], small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_TRANSPOSED_ELEMENTS", small)
    sampling = SamplingParams(max_new_tokens=40)
    found = []
    for without in ([], ["direct_decoding"]):
        policy = policy_of(CONFIGS[name], tmp_path, without=without)
        found.append(generate(policy, prompts, 4, sampling, list(range(4 * len(prompts)))))
        assert policy.shortcuts.uses(DirectDecoding) == (not without)
    for own, plain in zip(*found, strict=True):
        assert own.token_ids == plain.token_ids
        torch.testing.assert_close(torch.tensor(own.logprobs), torch.tensor(plain.logprobs), atol=1e-4, rtol=1e-4)
    assert len({len(done.token_ids) for done in found[0]}) > 1, "rows should leave the batch at different times"


DEEP = SIZES | {"num_hidden_layers": 5}
ANY_TYPE: dict[str, tuple[PreTrainedConfig, str]] = {
    "mistral": (MistralConfig(sliding_window=None, **SIZES), "used"),
    "mistral with a sliding window": (MistralConfig(sliding_window=8, **SIZES), "other caches than"),
    "granite": (GraniteConfig(attention_multiplier=0.3, **SIZES), "used"),
    "granite that scales its residuals": (GraniteConfig(residual_multiplier=0.22, **SIZES), "other states than"),
    "granite that scales its embeddings": (GraniteConfig(embedding_multiplier=12.0, **SIZES), "other states than"),
    "smollm3, whose fourth layer has no positions": (SmolLM3Config(**DEEP), "used"),
    "phi3, whose projections are fused": (Phi3Config(**SIZES), "is built differently (Phi3MLP"),
    "gemma3": (Gemma3TextConfig(head_dim=16, **SIZES), "other caches than"),
    "olmo2, which norms after its layers": (Olmo2Config(**SIZES), "is built differently (Olmo2DecoderLayer"),
    "ministral3, which scales attention by the position": (
        Ministral3Config(
            head_dim=16,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 64,
            },
            **SIZES,
        ),
        "other states than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ANY_TYPE))
def test_a_model_decodes_directly_if_the_trial_agrees_and_else_states_the_reason(name: str, tmp_path: Path) -> None:
    config, expected = ANY_TYPE[name]
    policy = policy_of(config, tmp_path / "usual")
    line = next(line for line in policy.shortcuts.lines() if "direct_decoding" in line)
    assert line == "shortcut direct_decoding: used" or line.startswith("shortcut direct_decoding: not used: ")
    assert expected in line
    plain = policy_of(config, tmp_path / "plain", without=["direct_decoding"])
    sampling = SamplingParams(max_new_tokens=24)
    own, theirs = (generate(which, PROMPTS, 4, sampling, list(range(12))) for which in (policy, plain))
    assert [completion.token_ids for completion in own] == [completion.token_ids for completion in theirs]
    for direct, expected in zip(own, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(direct.logprobs), torch.tensor(expected.logprobs), atol=1e-3, rtol=1e-3)


def test_weights_without_an_initial_effect_are_a_reason(tmp_path: Path) -> None:
    """A gate that is initially zero passes every trial, and would be ignored after training."""
    policy = policy_of(tiny_config("llama"), tmp_path)
    policy.lm.model.layers[1].gate = torch.nn.Parameter(torch.zeros(1))
    why_not = DirectDecoding().why_not(policy.eval().lm)
    assert why_not == "LlamaForCausalLM has weights that it does not know (layers.1.gate)"


in_bfloat16 = pytest.mark.skipif(
    not packed.has_operators(torch.bfloat16), reason="this CPU or build of torch multiplies no packed bfloat16"
)


@pytest.mark.parametrize(
    ("dtype", "small"),
    [(torch.float32, 2**20), (torch.float32, 0), pytest.param(torch.bfloat16, 2**20, marks=in_bfloat16)],
    ids=["transposed", "packed", "packed in bfloat16"],
)
@pytest.mark.parametrize("biases", [(True, True), (False, False), (True, False)])
def test_a_product_by_a_copy_equals_that_of_the_layers(
    biases: tuple[bool, bool], dtype: torch.dtype, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_TRANSPOSED_ELEMENTS", small)
    torch.manual_seed(0)
    sizes = zip((1000, 200), biases, strict=True)
    layers = [torch.nn.Linear(300, width, bias=bias, dtype=dtype) for width, bias in sizes]
    assert PackedWeights().why_not(layers[0]) is None
    apply = packed.fused_linear(layers, pack=True)
    with torch.no_grad():
        for rows in (1, 2, 3, 4, 5, 17, 64):
            inner_RD = torch.randn(rows, 300, dtype=dtype)
            torch.testing.assert_close(apply(inner_RD), tuple(layer(inner_RD) for layer in layers))
            torch.testing.assert_close(packed.linear(layers[0], pack=True)(inner_RD), layers[0](inner_RD))
        layers[0].weight.zero_()
        assert apply(inner_RD)[0].any(), "it should have been a copy of the weights"


@in_bfloat16
def test_under_autocast_the_packed_copy_has_its_type() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, 1000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert PackedWeights().why_not(layer) is None
        apply = packed.linear(layer, pack=True)
        for dtype in (torch.float32, torch.bfloat16):
            inner_RD = torch.randn(5, 300, dtype=dtype)
            found = apply(inner_RD)
            assert found.dtype is torch.bfloat16
            torch.testing.assert_close(found, layer(inner_RD))


@in_bfloat16
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_attention_in_float32_gives_what_it_gives_in_bfloat16(model_path: str, weights: Any) -> None:
    """With prompts of different lengths, so that a mask is needed; the packed copies are what brings float32."""
    found = []
    for without in ([], ["packed_weights"]):
        policy = Policy(PolicyConfig(path=model_path, dtype=weights, without=without))
        with torch.autocast("cpu", torch.bfloat16):
            found.append(generate(policy, PROMPTS, 4, SamplingParams(max_new_tokens=8), list(range(12))))
        assert policy.shortcuts.uses(PackedWeights) == (not without)
    assert_similar(*found)


@in_bfloat16
def test_a_small_weight_in_bfloat16_is_not_copied() -> None:
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    assert packed.linear(layer, pack=True) is layer


def test_few_kernels_serve_all_numbers_of_rows() -> None:
    filled = [packed.padded_rows(rows) for rows in range(1, 129)]
    assert sorted(set(filled)) == [4, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(rows <= found < rows + max(4, rows / 2) for rows, found in enumerate(filled, 1))


def test_weights_of_other_types_are_not_packed() -> None:
    layer = torch.nn.Linear(300, 1000)
    with torch.autocast("cpu", torch.float16):
        assert PackedWeights().why_not(layer) == "it is for float32 and bfloat16, not float16"
    assert PackedWeights().why_not(layer.double()) == "it is for float32 and bfloat16, not float64"


def test_layers_that_are_not_linear_are_called_unchanged() -> None:
    layers = [torch.nn.Sequential(torch.nn.Linear(300, 1000)), torch.nn.Linear(300, 1000)]
    inner_RD = torch.randn(2, 300)
    for product, layer in zip(packed.fused_linear(layers, pack=True)(inner_RD), layers, strict=True):
        assert torch.equal(product, layer(inner_RD))


def test_without_the_operators_weights_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight_FD: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(packed, "_packed", missing)
    packed.has_operators.cache_clear()
    why_not = PackedWeights().why_not(torch.nn.Linear(300, 1000))
    packed.has_operators.cache_clear()
    assert why_not == "this build of torch has no operators for it, or not for this CPU"


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_the_merged_adapter_is_included(kind: str, tmp_path: Path) -> None:
    policy = policy_of(tiny_config(kind), tmp_path, lora=LoRAConfig(r=4, alpha=8))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    assert policy.shortcuts.uses(DirectDecoding)
    with policy.rollout_mode() as lm:
        assert DirectDecoding().why_not(lm) is None
    why_not = DirectDecoding().why_not(policy.lm)
    assert why_not is not None, "unmerged, the adapter is passed by, and the trial should find that"
    assert "other states" in why_not


def test_bfloat16_with_autocast_is_supported(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path, dtype="bfloat16"))
    with torch.autocast("cpu", torch.bfloat16), policy.rollout_mode():
        assert policy.shortcuts.uses(DirectDecoding)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "its step gives LlamaForCausalLM other states than the forward pass"),
        ({"attn_implementation": "eager"}, "it is for sdpa attention, not eager"),
    ],
)
def test_unsupported_models_use_their_forward_pass(changes: dict[str, str], reason: str, tmp_path: Path) -> None:
    options, changes = (changes, {}) if "attn_implementation" in changes else ({}, changes)
    policy = policy_of(tiny_config("llama", **changes), tmp_path, **options)
    assert not policy.shortcuts.uses(DirectDecoding)
    assert f"shortcut direct_decoding: not used: {reason}" in policy.shortcuts.lines()
    own = generate(policy, PROMPTS[:1], 1, SamplingParams(temperature=0.0, max_new_tokens=12), [0])[0].token_ids
    ids = policy.lm.eval().generate(
        input_ids=torch.tensor(PROMPTS[:1]), max_new_tokens=12, do_sample=False, eos_token_id=policy.terminators,
        pad_token_id=0,
    )  # fmt: skip
    assert own == ids[0, len(PROMPTS[0]) :].tolist()


def test_a_model_with_a_different_structure_is_a_reason_not_a_crash(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(PolicyConfig(path=model_path))

    def other(self: DirectStep, lm: object, pack: bool = False) -> None:
        raise AttributeError("it has no embed_tokens")

    monkeypatch.setattr(DirectStep, "__init__", other)
    why_not = DirectDecoding().why_not(policy.lm)
    assert why_not == f"{type(policy.lm).__name__} is built differently (it has no embed_tokens)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_are_tried_alike_in_mixed_precision(dtype: torch.dtype) -> None:
    packed.has_operators.cache_clear()
    alone = packed.has_operators(dtype)
    packed.has_operators.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert packed.has_operators(dtype) is alone
    packed.has_operators.cache_clear()
