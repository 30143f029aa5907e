"""Judges JSON documents."""

from grpo_lightning.verifiers.json.verifier import JSONSchemaVerifier

__all__ = ["JSONSchemaVerifier"]
