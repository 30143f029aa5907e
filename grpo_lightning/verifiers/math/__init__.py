"""Judges final answers in mathematics."""

from grpo_lightning.verifiers.math.verifier import MathVerifier

__all__ = ["MathVerifier"]
