"""Callbacks, installed as ``grpo_lightning.callbacks``. They import the project's types and Lightning, nothing else."""

from .budget import TokenBudget
from .checkpoint import Checkpoint
from .export import PolicyExport
from .health import HealthCheck
from .predictions import PredictionWriter
from .progress import StepProgressBar
from .summary import RunSummary

__all__ = [
    "Checkpoint",
    "HealthCheck",
    "PolicyExport",
    "PredictionWriter",
    "RunSummary",
    "StepProgressBar",
    "TokenBudget",
]
