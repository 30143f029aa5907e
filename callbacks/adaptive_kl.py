"""Holding the KL to the reference near a target."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.algorithms import OnlineModule, PPOModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import RunCallback, StepEnd


class AdaptiveKL(RunCallback):
    """Moves the weight of the KL so that ``policy/kl`` comes near a target (Ziegler et al., arXiv 1909.08593, 2.2).

    ``e = clip(KL / target - 1, -0.2, 0.2)`` and ``beta <- beta (1 + gain e)`` after every training step; the paper's
    gain is 0.1, and its KL that of a whole sequence, while ``policy/kl`` is the mean over tokens. The configured
    ``model.beta`` is the first weight.

    Logs ``policy/beta``: the weight that the step was made with. A resumed run continues with the moved one.

    Args:
        target: nats per token.
        gain: how fast the weight follows.

    Raises:
        ConfigError: an option is out of its range, the run has no KL, or it is PPO's.
    """

    def __init__(self, target: float = 0.02, gain: float = 0.1) -> None:
        if target <= 0:
            raise ConfigError(f"AdaptiveKL.target: must be above 0, not {target}")
        if not 0 < gain <= 1:
            raise ConfigError(f"AdaptiveKL.gain: must be above 0 and up to 1, not {gain}")
        self.target = target
        self.gain = gain
        self.reset()

    def reset(self) -> None:
        self._beta: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(pl_module, PPOModule):
            raise ConfigError("AdaptiveKL: PPO takes its KL out of the rewards: set model.adaptive_kl instead")
        if stage == "fit" and not (isinstance(pl_module, OnlineModule) and pl_module.beta):
            raise ConfigError(
                "AdaptiveKL: this run's loss has no KL: set model.beta above 0, which is where the weight starts"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, OnlineModule), "setup refuses others"
        if self._beta is not None:
            pl_module.beta = self._beta

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        assert isinstance(module, OnlineModule), "setup refuses others"
        module.log("policy/beta", module.beta)
        # Reduced over the ranks: all of them move alike. A step without anything to learn has none.
        kl = end.metrics.get("policy/kl")
        if kl is not None and math.isfinite(kl):
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            module.beta *= 1 + self.gain * error
        self._beta = module.beta

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self._beta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._beta = state_dict["beta"]
