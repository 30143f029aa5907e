"""Rollouts: sampling, the decoding engine, scoring, and the DataModule that feeds the trainer with them."""

from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.rollout.sampling import SamplingParams

__all__ = ["RefinementConfig", "RolloutDataModule", "SamplingParams"]
