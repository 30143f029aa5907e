"""The procedural tasks of the package reasoning-gym."""

from grpo_lightning.tasks.reasoning_gym.task import GymDataset, ReasoningGym

__all__ = ["GymDataset", "ReasoningGym"]
