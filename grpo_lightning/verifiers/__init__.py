"""Verifiers: objects that judge completions. Importing this package imports neither torch nor transformers."""

from grpo_lightning.types import FinishReason, Sample, Verdict
from grpo_lightning.verifiers.base import Verifier, judge
from grpo_lightning.verifiers.math import MathVerifier

__all__ = ["FinishReason", "MathVerifier", "Sample", "Verdict", "Verifier", "judge"]
