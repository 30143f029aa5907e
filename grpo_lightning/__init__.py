"""Reinforcement learning of small language models with verifiable rewards, as a Lightning framework.

The public names are attributes of this package, and are imported when they are first used: ``import grpo_lightning``
loads neither torch nor transformers.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PACKAGES = {
    "algorithms": ("DistillationModule", "FeedbackContext", "GRPOModule", "PPOModule", "SFTModule"),
    "environments": ("Environment", "GuessNumber", "PythonEnvironment", "Reply", "Step", "ToolEnvironment"),
    "models": ("LoRAConfig", "PolicyConfig", "TeacherConfig"),
    "rollout": ("RefinementConfig", "RolloutDataModule", "SamplingParams"),
    "tasks": (
        "GSM8K", "MBPP", "Arithmetic", "Calculations", "Extraction", "HumanEval", "Mixture", "Numbers", "Programs",
        "ReasoningGym", "Tabular", "Task", "TaskShare",
    ),
    "verifiers": (
        "AllOf", "AnyOf", "ByColumn", "CodeVerifier", "FormatVerifier", "FunctionVerifier", "JSONSchemaVerifier",
        "LengthPenalty", "MathVerifier", "ReasoningGymVerifier", "RepetitionPenalty", "Sample", "Verdict", "Verifier",
        "WeightedVerifier",
    ),
    "callbacks": ("default_callbacks",),
}  # fmt: skip
_PACKAGE_OF = {name: package for package, names in _PACKAGES.items() for name in names}

__all__ = ["__version__", *_PACKAGE_OF]


def __getattr__(name: str) -> Any:
    package = _PACKAGE_OF.get(name)
    if package is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{package}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
