"""Architectures without a recipe: from random weights, each trains with LoRA, and its passes agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.callbacks import HealthCheck
from grpo_lightning.models import LoRAConfig, PolicyConfig
from tests.toy import LetterVerifier, fit

ROOT = Path(__file__).parents[2]
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 343, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "head_dim": 8,
        "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"], "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "granitemoehybrid": {
        "num_local_experts": 0, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    },
    "lfm2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3_5_text": HYBRID | {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", SIZES)
def test_it_trains_and_sampling_agrees_with_training(family: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/tiny_decoder_turns")
    common = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**common | SIZES[family]))
    policy = PolicyConfig.from_model(model, tokenizer, lora=LoRAConfig(r=2))
    module = GRPOModule(policy=policy, verifiers=LetterVerifier(), beta=0.0)
    fit(tmp_path, module, 1, callbacks=[HealthCheck(prompts=2, examples=False, max_sampler_gap=1e-5)])


def test_the_page_names_them() -> None:
    page = (ROOT / "docs/models.md").read_text()
    assert all(f"`{family}`" in page for family in SIZES)
