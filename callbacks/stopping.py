"""Ending a run that has gone wrong, has nothing to learn from, or has reached its goal."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import RunCallback, StepEnd

log = logging.getLogger(__name__)


class StopWhen(RunCallback):
    """Ends training, as if ``max_steps`` were reached, when one of its conditions holds for several consecutive steps.

    Lightning's ``EarlyStopping`` does the same for ``val/accuracy``. A run may have several, each with its own options.

    Args:
        no_signal_steps: stop when no group had completions of different rewards in this many consecutive steps
            (GRPO); ``None`` never.
        max_kl: stop when ``policy/kl`` was above this in ``patience`` consecutive steps; ``None`` never. Steps
            without a KL do not count.
        reward: stop when ``reward/mean`` was at least this in ``patience`` consecutive steps; ``None`` never.
        patience: consecutive steps for which a condition must hold: the mean of one step is noisy.

    Raises:
        ConfigError: an option is out of its range, no condition is given, or one can never hold in this run.
    """

    def __init__(
        self,
        no_signal_steps: int | None = None,
        max_kl: float | None = None,
        reward: float | None = None,
        patience: int = 5,
    ) -> None:
        for name, value in (("no_signal_steps", no_signal_steps), ("patience", patience)):
            if value is not None and value < 1:
                raise ConfigError(f"StopWhen.{name}: must be at least 1, not {value}")
        if no_signal_steps is max_kl is reward is None:
            raise ConfigError("StopWhen: give no_signal_steps, max_kl or reward: without one it never stops a run")
        self.no_signal_steps = no_signal_steps
        self.max_kl = max_kl
        self.reward = reward
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        self._running = {"no_signal_steps": 0, "max_kl": 0, "reward": 0}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module = policy_module(pl_module, self)
        if self.no_signal_steps is not None and not module.compares_rewards:
            raise ConfigError(
                "StopWhen.no_signal_steps: this run does not learn from groups, so it would never stop it: remove it"
            )
        if self.max_kl is not None and not module.has_kl:
            raise ConfigError(
                "StopWhen.max_kl: this run has no KL to a reference, so it would never stop it: set model.beta above "
                "0, or remove it"
            )
        if self.reward is not None and not module.samples_to_learn:
            raise ConfigError(
                "StopWhen.reward: this run learns from demonstrations and has no reward, so it would never stop it: "
                "remove it, or use Lightning's EarlyStopping on val/accuracy"
            )

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if end.experience is None:
            return
        seen = end.metrics
        if self.no_signal_steps is not None:
            holds = seen.get("reward/groups_without_signal", 0) == 1
            self._count("no_signal_steps", holds, self.no_signal_steps, trainer, "no group had a signal to learn from")
        if self.max_kl is not None and "policy/kl" in seen:
            self._count(
                "max_kl", seen["policy/kl"] > self.max_kl, self.patience, trainer, f"policy/kl was above {self.max_kl}"
            )
        if self.reward is not None and "reward/mean" in seen:
            holds = seen["reward/mean"] >= self.reward
            self._count("reward", holds, self.patience, trainer, f"reward/mean was at least {self.reward}")

    def _count(self, condition: str, holds: bool, steps: int, trainer: pl.Trainer, what: str) -> None:
        """Count the steps running; metrics have been reduced over the ranks, so that all of them stop together."""
        self._running[condition] = self._running[condition] + 1 if holds else 0
        if self._running[condition] >= steps and not trainer.should_stop:
            log.warning("stopping: %s in %d steps running (StopWhen.%s)", what, self._running[condition], condition)
            trainer.should_stop = True

    @property
    def state_key(self) -> str:
        """Its options: a run may have several, such as one per condition. Where they change, counting starts anew."""
        options = (self.no_signal_steps, self.max_kl, self.reward, self.patience)
        return f"{type(self).__name__}{options}"

    def state_dict(self) -> dict[str, Any]:
        return dict(self._running)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._running = dict(state_dict)
