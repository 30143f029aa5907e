"""Advantages: what a completion's reward is worth beside the others. One class per file, named by ``class_path``."""

from grpo_lightning.advantages.base import Advantage, RewardMoments
from grpo_lightning.advantages.batch_std import BatchStd
from grpo_lightning.advantages.gdpo import GDPO
from grpo_lightning.advantages.group_std import GroupStd
from grpo_lightning.advantages.leave_one_out import LeaveOneOut
from grpo_lightning.advantages.max_rl import MaxRL
from grpo_lightning.advantages.pass_at_k import PassAtK
from grpo_lightning.advantages.short_form import AdvantageName, named_advantage
from grpo_lightning.advantages.unscaled import Unscaled

__all__ = [
    "GDPO",
    "Advantage",
    "AdvantageName",
    "BatchStd",
    "GroupStd",
    "LeaveOneOut",
    "MaxRL",
    "PassAtK",
    "RewardMoments",
    "Unscaled",
    "named_advantage",
]
