"""Callbacks, installed as ``grpo_lightning.callbacks``."""

from .adaptive_kl import AdaptiveKL
from .budget import TokenBudget
from .checkpoint import RunCheckpoint
from .cost import Cost
from .defaults import default_callbacks
from .ending import EndOnSignal
from .export import PolicyExport
from .health import HealthCheck
from .notebook import NotebookView
from .predictions import PredictionWriter
from .profiler import VRAMProfiler
from .progress import StepProgressBar
from .reference_sync import ReferenceSync
from .rollouts import RolloutLogger
from .stopping import StopWhen
from .summary import RunSummary
from .tensorboard import TensorBoardExtras

__all__ = [
    "AdaptiveKL",
    "Cost",
    "EndOnSignal",
    "HealthCheck",
    "NotebookView",
    "PolicyExport",
    "PredictionWriter",
    "ReferenceSync",
    "RolloutLogger",
    "RunCheckpoint",
    "RunSummary",
    "StepProgressBar",
    "StopWhen",
    "TensorBoardExtras",
    "TokenBudget",
    "VRAMProfiler",
    "default_callbacks",
]
