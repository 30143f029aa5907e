"""A model family that the project does not name: it needs a folder, and nothing else.

python -m examples.model_family olmo2 runs/tiny_olmo2
grpo plan --config configs/quickstart.yaml --warm_start null --model.policy.path runs/tiny_olmo2
grpo fit --config configs/quickstart.yaml --warm_start null --model.policy.path runs/tiny_olmo2
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.models import Policy, PolicyConfig

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(family: str, folder: str) -> None:
    """Save a tiny model of a family, with random weights, and its tokenizer, as ``save_pretrained`` does for any."""
    tokenizer = AutoTokenizer.from_pretrained("configs/tiny_decoder")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), max_position_embeddings=256, **SIZES, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(args: Sequence[str]) -> None:
    """Build a model, load it as a run does, and print which shortcuts have been found to give the plain results."""
    family, folder = args
    build(family, folder)
    for line in Policy(PolicyConfig(path=folder)).shortcuts.lines():
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
