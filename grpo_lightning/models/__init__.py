"""Policies: causal language models with tokenizer, adapter and reference."""

from grpo_lightning.models.adapters import LoRAConfig
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.teacher import TeacherConfig
from grpo_lightning.models.value import Critic

__all__ = ["Critic", "LoRAConfig", "Policy", "PolicyConfig", "TeacherConfig"]
