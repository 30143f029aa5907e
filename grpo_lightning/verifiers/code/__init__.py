"""Judges programs."""

from grpo_lightning.verifiers.code.verifier import CodeVerifier

__all__ = ["CodeVerifier"]
