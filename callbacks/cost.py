"""What a run has cost, in money."""

from __future__ import annotations

import math

import lightning.pytorch as pl

from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import RunCallback, StepEnd

SECONDS_PER_HOUR = 3600


class Cost(RunCallback):
    """Logs ``total/usd``: the price of the time since training began (``total/wall_s``), validation included.

    A resumed run continues to count; the time between the two does not count. ``grpo compare`` shows what a point of
    accuracy cost.

    Args:
        price_per_hour: USD per hour, of all devices of the run together.

    Raises:
        ConfigError: the price is not a positive number.
    """

    def __init__(self, price_per_hour: float) -> None:
        if not 0 < price_per_hour < math.inf:
            raise ConfigError(f"Cost.price_per_hour: must be a number of USD above 0, not {price_per_hour}")
        self.price_per_hour = price_per_hour

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        usd = end.metrics["total/wall_s"] / SECONDS_PER_HOUR * self.price_per_hour
        module.log("total/usd", usd)
