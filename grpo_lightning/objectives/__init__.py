"""Policy objectives: what an update maximises, token by token. One class per file, named in YAML by ``class_path``."""

from grpo_lightning.objectives.base import Objective, PolicyLossTerms
from grpo_lightning.objectives.check import check_objective
from grpo_lightning.objectives.cispo import CISPO, RatioLevel
from grpo_lightning.objectives.clip import Clip
from grpo_lightning.objectives.dppo import DPPO
from grpo_lightning.objectives.gmpo import GMPO
from grpo_lightning.objectives.gspo import GSPO
from grpo_lightning.objectives.gspo_token import GSPOToken
from grpo_lightning.objectives.sapo import SAPO
from grpo_lightning.objectives.short_form import ObjectiveName, ShortForm

__all__ = [
    "CISPO",
    "DPPO",
    "GMPO",
    "GSPO",
    "SAPO",
    "Clip",
    "GSPOToken",
    "Objective",
    "ObjectiveName",
    "PolicyLossTerms",
    "RatioLevel",
    "ShortForm",
    "check_objective",
]
