"""Policy objectives: what an update maximises, token by token. One class per file, named in YAML by ``class_path``."""

from grpo_lightning.objectives.base import Objective, PolicyLossTerms
from grpo_lightning.objectives.check import check_objective
from grpo_lightning.objectives.cispo import CISPO, RatioLevel
from grpo_lightning.objectives.clip import Clip
from grpo_lightning.objectives.gspo import GSPO
from grpo_lightning.objectives.short_form import ObjectiveName, ShortForm

__all__ = [
    "CISPO",
    "GSPO",
    "Clip",
    "Objective",
    "ObjectiveName",
    "PolicyLossTerms",
    "RatioLevel",
    "ShortForm",
    "check_objective",
]
