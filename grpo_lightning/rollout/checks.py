"""Checks of options, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from transformers import PreTrainedTokenizerBase

from grpo_lightning.constraints.grammar import check_tokenizer, library, problem_of
from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import Split
from grpo_lightning.types import Prompt

if TYPE_CHECKING:
    from grpo_lightning.rollout.datamodule import RolloutDataModule


def check_options(data: RolloutDataModule) -> None:
    """Check each option, and what options ask of each other.

    Raises:
        ConfigError: the first invalid option, in one sentence.
    """
    data.sampling.validate("data.sampling")
    data.val_sampling.validate("data.val_sampling")
    if data.refinement is not None:
        data.refinement.validate(data.sampling.temperature)
        if data.environment is not None:
            raise ConfigError(
                "data.refinement: an environment gives its own feedback: remove data.refinement or data.environment"
            )
    if data.resample_silent is not None:
        data.resample_silent.validate(data.group_size)
        if data.environment is not None:
            raise ConfigError(
                "data.resample_silent: replaces attempts of one turn, not the episodes of data.environment: remove one "
                "of the two"
            )
        if data.refinement is not None:
            raise ConfigError(
                "data.resample_silent: replaces the groups that data.refinement gives further attempts first, those "
                "without a success: remove one of the two"
            )
    counts = {
        "prompts_per_step": data.prompts_per_step,
        "group_size": data.group_size,
        "val_batch_size": data.val_batch_size,
        "max_prompt_tokens": data.max_prompt_tokens,
        "rollout_rows_at_once": data.rollout_rows_at_once,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}: must be at least 1, not {value}")
    if data.pass_at_k and not 1 <= min(data.pass_at_k) <= max(data.pass_at_k) <= data.pass_samples:
        raise ConfigError(
            f"data.pass_at_k: every k must be from 1 to pass_samples ({data.pass_samples}), not {data.pass_at_k}"
        )
    if data.pass_at_k and data.sampling.temperature == 0:
        raise ConfigError("data.pass_at_k: needs samples that differ: set data.sampling.temperature above 0")
    _check_ahead(data)
    for key, sampling in (("sampling", data.sampling), ("val_sampling", data.val_sampling)):
        if sampling.constraint is None:
            continue
        if data.environment is not None:
            raise ConfigError(
                f"data.{key}.constraint: the turns of an environment cannot be constrained: remove the constraint, or "
                "data.environment"
            )
        if not data.engine.constrains:
            raise ConfigError(
                f"data.{key}.constraint: {type(data.engine).__name__} does not keep completions to a grammar with "
                "log-probs among the allowed tokens: remove the constraint, or set data.engine to InProcessEngine"
            )
        library()


def check_constraints(
    data: RolloutDataModule, split: Split, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> None:
    """Check that the constraint of a split's completions has a grammar for each of its rows that can be used.

    Raises:
        ConfigError: the first row that has none, in one sentence.
    """
    used = {"sampling": data.sampling} if split == "train" or data.pass_at_k else {}
    used |= {} if split == "train" else {"val_sampling": data.val_sampling}
    for key, sampling in used.items():
        constraint = sampling.constraint
        if constraint is None:
            continue
        check_tokenizer(tokenizer)
        for row, prompt in enumerate(prompts):
            try:
                problem = problem_of(constraint.grammar(prompt))
            except ValueError as error:
                problem = str(error)
            if problem is not None:
                raise ConfigError(
                    f"data.{key}.constraint: {type(constraint).__name__} cannot constrain row {row} of the {split} "
                    f"split: {problem}; fix the row, or remove the constraint"
                )


def check_trainer(trainer: pl.Trainer) -> None:
    """Check the options of ``trainer`` that do nothing here.

    Raises:
        ConfigError: one of them is set.
    """
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise ConfigError(
            "trainer.overfit_batches: does not limit the prompts that steps draw: make the task small instead, by "
            "data.task.init_args.limit or train_size"
        )


def _check_ahead(data: RolloutDataModule) -> None:
    steps, engine = data.rollouts_ahead, data.engine
    if steps not in (0, 1):
        raise ConfigError(f"data.rollouts_ahead: must be 0 or 1, not {steps}")
    if steps and not engine.remote:
        raise ConfigError(
            f"data.rollouts_ahead: {type(engine).__name__} samples in the trainer's process, from the weights that are "
            "being trained, so it cannot sample while a step is learned: set data.engine to VLLMEngine, or this to 0"
        )
