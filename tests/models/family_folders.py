"""Tiny models of the families in ``families/*.yaml``: their architecture, special tokens and chat template.

Each file has what is published of a family: the sizes of a model and of others (``other_sizes``), special tokens and
their roles, a template that renders what the published one does of chats without tools, and how that must look.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "families"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def facts_of(name: str) -> dict[str, Any]:
    """The facts of a family."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The family's special tokens, in their roles, before bytes as tokens."""
    facts = facts_of(name)
    tokens = facts["tokens"]
    special = tokens["special"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    if tokens.get("adds_bos"):
        bos = tokens["bos"]
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, special.index(bos))])
    roles = {f"{role}_token": tokens[role] for role in ("bos", "eos", "pad") if role in tokens}
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **roles)
    fast.chat_template = facts.get("chat_template")
    return fast


def save_family(folder: Path, name: str) -> str:
    """Save a tiny model of a family with random weights, and return its folder."""
    facts, tokenizer = facts_of(name), family_tokenizer(name)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    sizes = {key: value for key, value in facts["config"].items() if key not in ("model_type", "full_attn_idxs")}
    config = AutoConfig.for_model(
        facts["config"]["model_type"], **sizes | facts["tiny"] | ids | {"vocab_size": len(tokenizer)}
    )
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config)
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    ends = tokenizer.convert_tokens_to_ids(facts["terminators"])
    with torch.no_grad():
        lm.get_output_embeddings().weight[ends] *= 3  # drawn more often, so that completions end
    lm.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(facts["generation_eos"])
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def published(name: str) -> dict[str, dict[str, Any]]:
    """The published configs of a family by the name of the model, each with its number of ``parameters``."""
    facts = facts_of(name)
    first = facts["config"] | {"parameters": facts["parameters"]}
    return {facts["model"]: first} | {model: first | sizes for model, sizes in facts.get("other_sizes", {}).items()}


MODELS = {model: name for name in FAMILIES for model in published(name)}
"""The family of each model whose sizes are known."""


def save_published_config(folder: Path, model: str) -> str:
    """Save a model's published sizes alone, without weights or tokenizer, and return the folder."""
    sizes = {key: value for key, value in published(MODELS[model])[model].items() if key != "parameters"}
    (folder / "config.json").write_text(json.dumps(sizes))
    return str(folder)
