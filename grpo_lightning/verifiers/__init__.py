"""Verifiers: objects that judge completions. Importing this package imports neither torch nor transformers."""

from grpo_lightning.types import Explanation, FinishReason, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge
from grpo_lightning.verifiers.code.verifier import CodeVerifier
from grpo_lightning.verifiers.composite import ByColumn, WeightedVerifier
from grpo_lightning.verifiers.format import FormatVerifier
from grpo_lightning.verifiers.function import FunctionVerifier
from grpo_lightning.verifiers.json.verifier import JSONSchemaVerifier
from grpo_lightning.verifiers.logical import AllOf, AnyOf
from grpo_lightning.verifiers.math.verifier import MathVerifier
from grpo_lightning.verifiers.reasoning_gym.verifier import ReasoningGymVerifier
from grpo_lightning.verifiers.shaping import LengthPenalty, RepetitionPenalty

__all__ = [
    "AllOf",
    "AnyOf",
    "ByColumn",
    "CodeVerifier",
    "Explanation",
    "FinishReason",
    "FormatVerifier",
    "FunctionVerifier",
    "JSONSchemaVerifier",
    "LengthPenalty",
    "MathVerifier",
    "ReasoningGymVerifier",
    "RepetitionPenalty",
    "Sample",
    "Verdict",
    "Verifier",
    "WeightedVerifier",
    "judge",
]
