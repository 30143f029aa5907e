"""Ending a run at a number of generated tokens, so that runs can be compared at equal sampling."""

from __future__ import annotations

import logging

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import RunCallback, StepEnd

log = logging.getLogger(__name__)

COUNTER = "total/rollout_tokens"


class TokenBudget(RunCallback):
    """Ends training after the step in which the run reaches a number of generated tokens, as if by ``max_steps``.

    It counts the tokens of all completions sampled for training, further attempts included (``total/rollout_tokens``).

    Args:
        tokens: the budget.

    Raises:
        ConfigError: the budget is below 1, or the run generates nothing to learn from.
    """

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"TokenBudget.tokens: must be at least 1, not {tokens}")
        self.tokens = tokens

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make no step if the run has reached its budget: it may have been resumed."""
        sampled = policy_module(pl_module, self).totals.rollout_tokens
        if sampled >= self.tokens:
            log.warning(
                "TokenBudget.tokens: no step is made: %d of %d tokens have been sampled; raise it to continue",
                sampled,
                self.tokens,
            )
            trainer.should_stop = True

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if not end.metrics.get(COUNTER, 0) > 0:
            raise ConfigError(
                f"TokenBudget: {type(module).__name__} generates nothing to learn from ({COUNTER} is 0): set "
                "trainer.max_steps instead"
            )
        # The same number on every rank, so all of them stop.
        if end.metrics[COUNTER] >= self.tokens:
            trainer.should_stop = True
