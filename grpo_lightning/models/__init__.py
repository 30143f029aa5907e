"""Policies: causal language models with tokenizer, adapter and reference."""

from grpo_lightning.models.policy import LoRAConfig, Policy, PolicyConfig

__all__ = ["LoRAConfig", "Policy", "PolicyConfig"]
