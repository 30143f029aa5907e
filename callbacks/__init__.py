"""Callbacks, installed as ``grpo_lightning.callbacks``. They import the project's types and Lightning, nothing else."""

from grpo_lightning.callbacks.checkpoint import Checkpoint
from grpo_lightning.callbacks.export import PolicyExport
from grpo_lightning.callbacks.health import HealthCheck
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.callbacks.progress import StepProgressBar
from grpo_lightning.callbacks.summary import RunSummary

__all__ = ["Checkpoint", "HealthCheck", "PolicyExport", "PredictionWriter", "RunSummary", "StepProgressBar"]
