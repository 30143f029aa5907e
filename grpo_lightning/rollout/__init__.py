"""Rollouts: sampling, the decoding engine, scoring, and the DataModule that feeds the trainer with them."""

from grpo_lightning.rollout.curriculum import Curriculum, EasyToHard, Informative, UniformDraw
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.events import EvaluationEnd, RunCallback, StepEnd, step_ended
from grpo_lightning.rollout.experience import Demonstrations, EvaluationBatch, Experience, Recipe
from grpo_lightning.rollout.learner import Collect, Learner
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.rollout.resampling import ResampleConfig
from grpo_lightning.rollout.sampling import SamplingParams

__all__ = [
    "Collect",
    "Curriculum",
    "Demonstrations",
    "EasyToHard",
    "EvaluationBatch",
    "EvaluationEnd",
    "Experience",
    "Informative",
    "Learner",
    "PromptBatch",
    "Recipe",
    "RefinementConfig",
    "ResampleConfig",
    "RolloutDataModule",
    "RunCallback",
    "SamplingParams",
    "StepEnd",
    "UniformDraw",
    "step_ended",
]
