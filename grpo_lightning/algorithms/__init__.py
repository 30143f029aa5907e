"""Algorithms, as LightningModules over one base."""

from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.algorithms.distillation import DistillationModule
from grpo_lightning.algorithms.entropy import EntropyBonus, ScheduledEntropy, TargetEntropy
from grpo_lightning.algorithms.grpo import GRPOModule
from grpo_lightning.algorithms.online import OnlineModule
from grpo_lightning.algorithms.ppo import KLController, PPOModule
from grpo_lightning.algorithms.rollout_metrics import VerifierError
from grpo_lightning.algorithms.sft import SFTModule
from grpo_lightning.algorithms.teacher_context import FeedbackContext, TeacherContext
from grpo_lightning.algorithms.update import NonFiniteError
from grpo_lightning.algorithms.used_with import policy_module
from grpo_lightning.algorithms.value_pretraining import ValuePretraining

__all__ = [
    "DistillationModule",
    "EntropyBonus",
    "FeedbackContext",
    "GRPOModule",
    "KLController",
    "NonFiniteError",
    "OnlineModule",
    "PPOModule",
    "PolicyModule",
    "SFTModule",
    "ScheduledEntropy",
    "TargetEntropy",
    "TeacherContext",
    "ValuePretraining",
    "VerifierError",
    "policy_module",
]
