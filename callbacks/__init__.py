"""Callbacks, installed as ``grpo_lightning.callbacks``. They import the project's types and Lightning, nothing else."""

from .checkpoint import Checkpoint
from .export import PolicyExport
from .health import HealthCheck
from .predictions import PredictionWriter
from .progress import StepProgressBar
from .rollouts import RolloutLogger
from .summary import RunSummary
from .tensorboard import TensorBoardExtras

__all__ = [
    "Checkpoint",
    "HealthCheck",
    "PolicyExport",
    "PredictionWriter",
    "RolloutLogger",
    "RunSummary",
    "StepProgressBar",
    "TensorBoardExtras",
]
