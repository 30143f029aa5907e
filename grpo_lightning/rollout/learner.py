"""What the DataModule needs of the module that it feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import lightning.pytorch as pl

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.experience import Demonstrations, Experience
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.verifiers.base import Verifier

if TYPE_CHECKING:
    from grpo_lightning.rollout.datamodule import RolloutDataModule

Collect = Callable[[PromptBatch], Experience]
"""Samples attempts at prompts, by their recipe, and has them judged."""


class Learner(Protocol):
    """A LightningModule that a :class:`~grpo_lightning.rollout.RolloutDataModule` can feed.

    A subclass of :class:`~grpo_lightning.algorithms.PolicyModule` is one. Any other LightningModule with these
    attributes is one too; it ends its ``training_step`` with
    :func:`~grpo_lightning.rollout.events.step_ended`, so that the step counts as done.
    """

    policy_config: PolicyConfig
    """Its tokenizer is loaded for the prompts before any model is."""
    policy: Policy
    """What completions are sampled from; loaded in ``configure_model``."""
    verifiers: dict[str, Verifier]
    """By the name that their rewards are logged under."""
    phases: Phases
    """Times ``rollout`` and ``verify``, and tells its listeners."""

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Called when the data of a stage has been loaded, before the model is.

        Raises:
            ConfigError: the module cannot work with this data.
        """

    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience | Demonstrations:
        """The batch of the next ``training_step``: ``collect(prompts)``, or something else made of the prompts."""


def learner_of(trainer: pl.Trainer) -> Learner:
    """The module of a trainer.

    Raises:
        ConfigError: it is not a :class:`Learner`.
    """
    module = trainer.lightning_module
    if not hasattr(module, "batch_from"):
        raise ConfigError(
            f"model: {type(module).__name__} does not say what it learns from: give it the attributes and methods of "
            "grpo_lightning.rollout.Learner, or derive it from PolicyModule"
        )
    return cast(Learner, module)
