"""Rollouts from vLLM servers over HTTP. Nothing of vLLM is imported."""

from grpo_lightning.rollout.engines.vllm.engine import VLLMEngine
from grpo_lightning.rollout.engines.vllm.launch import Launch

__all__ = ["Launch", "VLLMEngine"]
