"""Tasks: the sources of prompts and gold answers."""

from grpo_lightning.tasks.arithmetic import Arithmetic
from grpo_lightning.tasks.base import MissingSplit, Task
from grpo_lightning.tasks.calculations import Calculations
from grpo_lightning.tasks.controls import check_controls
from grpo_lightning.tasks.extraction import Extraction
from grpo_lightning.tasks.gsm8k import GSM8K
from grpo_lightning.tasks.humaneval import HumanEval
from grpo_lightning.tasks.mbpp import MBPP
from grpo_lightning.tasks.mixture import Mixture, TaskShare
from grpo_lightning.tasks.numbers import Numbers
from grpo_lightning.tasks.programs import Programs
from grpo_lightning.tasks.reasoning_gym import ReasoningGym
from grpo_lightning.tasks.tabular import Tabular

__all__ = [
    "GSM8K",
    "MBPP",
    "Arithmetic",
    "Calculations",
    "Extraction",
    "HumanEval",
    "MissingSplit",
    "Mixture",
    "Numbers",
    "Programs",
    "ReasoningGym",
    "Tabular",
    "Task",
    "TaskShare",
    "check_controls",
]
