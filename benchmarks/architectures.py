"""Models of given shapes with random weights, their tokenizers, and prompts of given lengths, without downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, Lfm2Config, LlamaConfig, PreTrainedTokenizerFast

from grpo_lightning.tasks import Task
from grpo_lightning.tasks.base import Split
from grpo_lightning.types import Prompt

TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]

C, A = "conv", "full_attention"
SHAPES: dict[str, dict[str, Any]] = {
    # LiquidAI/LFM2.5-1.2B: 10 gated short convolutions, 6 layers of grouped-query attention, 1.17 B parameters.
    "lfm2.5-1.2b": {
        "vocab_size": 65_536, "hidden_size": 2048, "intermediate_size": 12_288, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 128_000,
        "layer_types": [C, C, A, C, C, A, C, C, A, C, A, C, A, C, A, C],
    },
    # The same family at 42 M.
    "lfm2-42m": {
        "vocab_size": 32_768, "hidden_size": 512, "intermediate_size": 2304, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 4096, "layer_types": [C, C, A, C, A, C, A, C],
    },
    "lfm2-tiny": {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 512, "layer_types": [C, A],
    },
    "llama-42m": {
        "vocab_size": 32_768, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 4096, "num_hidden_layers": 8,
    },
}  # fmt: skip


def build(name: str, folder: Path) -> str:
    """Write the config of architecture ``name`` and a tokenizer to a folder, for ``model.policy.init: random``."""
    shape = SHAPES[name] | {
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": SPECIAL.index("<|im_end|>")
    }  # fmt: skip
    if "layer_types" in shape:
        config = Lfm2Config(**shape, num_hidden_layers=len(shape["layer_types"]), block_auto_adjust_ff_dim=True)
        config.architectures = ["Lfm2ForCausalLM"]
    else:
        config = LlamaConfig(**shape)
        config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer(shape["vocab_size"]).save_pretrained(folder)
    return str(folder)


def write_weights(folder: str, device: str, dtype: torch.dtype) -> None:
    """Write random weights, drawn on a device, beside the config in a folder."""
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    lm.save_pretrained(folder)


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer: special tokens, one token per byte, and fillers up to the vocabulary size."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<{index}>" for index in range(len(words), vocab_size)]
    core = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|startoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


class FixedLengths(Task):
    """A task with prompts and solutions of given lengths.

    Args:
        prompt_tokens: minimum number of tokens per prompt; ``max_prompt_tokens`` truncates prompts to this length.
        solution_tokens: exact number of tokens per solution.
        rows: number of prompts per split.
    """

    def __init__(self, prompt_tokens: int, solution_tokens: int, rows: int = 256) -> None:
        super().__init__()
        self.prompt_tokens = prompt_tokens
        self.solution_tokens = solution_tokens
        self.rows = rows

    def prompts(self, split: Split) -> Sequence[Prompt]:
        # A letter is one token, and the last token is the terminator.
        solution = "y" * (self.solution_tokens - 1)
        return [
            Prompt(self.messages(f"{'x' * self.prompt_tokens} {split} {row}"), answer="1", solution=solution)
            for row in range(self.rows)
        ]

    def gold_completion(self, prompt: Prompt) -> str:
        return str(prompt.solution)
