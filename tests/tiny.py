"""Builders of tiny real models and their tokenizer, in the shapes of Llama, Qwen3, Qwen3.5, Gemma 3, LFM2 and LFM3."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm3Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3_5TextConfig,
    Qwen3Config,
)

# As LFM2.5 has it: the template writes BOS itself and ends turns with <|im_end|>, while the config says EOS is 2.
PAD, BOS, CONFIG_EOS, IM_START, IM_END = 0, 1, 2, 6, 7
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens behind a few special ones: any text encodes, and any ids decode."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [
        "<|pad|>",
        "<|startoftext|>",
        "<|endoftext|>",
        "<|x3|>",
        "<|x4|>",
        "<|x5|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|endoftext|>", "<|x3|>", "<|x4|>", "<|x5|>", "<|im_start|>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def tiny_config(kind: str, **changes: object) -> PreTrainedConfig:
    common = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": CONFIG_EOS,
    }  # fmt: skip
    if kind == "llama":
        return LlamaConfig(**{"num_hidden_layers": 2} | common | changes)
    if kind == "qwen3":
        return Qwen3Config(**{"num_hidden_layers": 2, "head_dim": 16} | common | changes)
    if kind == "lfm3":
        layers = ["conv", "sliding_attention", "conv", "full_attention"]
        sizes = {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 8}
        return Lfm3Config(layer_types=layers, **sizes | common | changes)
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        sizes = {"num_hidden_layers": 2, "head_dim": 16, "sliding_window": 8}
        return Gemma3TextConfig(layer_types=layers, **sizes | common | changes)
    if kind == "qwen3_5":
        layers = ["linear_attention", "full_attention"]
        sizes = {"num_hidden_layers": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        heads = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        return Qwen3_5TextConfig(layer_types=layers, **sizes | heads | common | changes)
    layers = ["conv", "full_attention", "conv"]
    return Lfm2Config(num_hidden_layers=3, layer_types=layers, block_auto_adjust_ff_dim=False, **common | changes)


def save_tiny_model(folder: Path, kind: str, seed: int = 0, **changes: object) -> str:
    """A random model with a spread-out distribution, so that greedy paths differ and ties do not occur."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    with torch.no_grad():
        # Longer rows of the (tied) head are drawn more often: completions should end at different lengths.
        model.get_input_embeddings().weight[[CONFIG_EOS, IM_END]] *= 1.5
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
