"""Algorithms, as LightningModules over one base."""

from grpo_lightning.algorithms.base import NonFiniteError, PolicyModule
from grpo_lightning.algorithms.grpo import GRPOModule, VerifierError
from grpo_lightning.algorithms.sft import SFTModule

__all__ = ["GRPOModule", "NonFiniteError", "PolicyModule", "SFTModule", "VerifierError"]
