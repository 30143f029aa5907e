"""Constraints: what completions may be at all. One class per file, named by ``class_path``."""

from grpo_lightning.constraints.base import Constraint
from grpo_lightning.constraints.regex import Regex
from grpo_lightning.constraints.row_schema import RowSchema

__all__ = ["Constraint", "Regex", "RowSchema"]
