"""Names of the advantages of this package: the short form of the key ``advantage``."""

from __future__ import annotations

from typing import Literal

from grpo_lightning.advantages.base import Advantage
from grpo_lightning.advantages.batch_std import BatchStd
from grpo_lightning.advantages.group_std import GroupStd
from grpo_lightning.advantages.leave_one_out import LeaveOneOut
from grpo_lightning.advantages.unscaled import Unscaled
from grpo_lightning.errors import ConfigError

AdvantageName = Literal["group", "none-scaled", "batch-std", "leave_one_out"]


def named_advantage(chosen: AdvantageName | Advantage) -> Advantage:
    """The advantage of the key ``advantage``: the one given, or the one of that name.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(chosen, Advantage):
        return chosen
    classes: dict[str, type[Advantage]] = {kind.name: kind for kind in (GroupStd, Unscaled, BatchStd, LeaveOneOut)}
    if chosen not in classes:
        raise ConfigError(f"model.advantage: must be one of {', '.join(classes)} or an Advantage, not {chosen!r}")
    return classes[chosen]()
