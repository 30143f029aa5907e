"""Algorithms, as LightningModules over one base."""

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.grpo import GRPOModule
from grpo_lightning.algorithms.nonfinite import NonFiniteError
from grpo_lightning.algorithms.online import OnlineModule, VerifierError
from grpo_lightning.algorithms.ppo import KLController, PPOModule
from grpo_lightning.algorithms.sft import SFTModule
from grpo_lightning.algorithms.used_with import policy_module

__all__ = [
    "GRPOModule",
    "KLController",
    "NonFiniteError",
    "OnlineModule",
    "PPOModule",
    "PolicyModule",
    "SFTModule",
    "VerifierError",
    "policy_module",
]
