"""The rollout DataModule: prompts in, scored groups of completions out, right before every training step."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from grpo_lightning.models.policy import Policy
from grpo_lightning.models.tokenizer import encode_completion, load_tokenizer
from grpo_lightning.rollout.batch import right_padded, score, token_rows
from grpo_lightning.rollout.engine import generate
from grpo_lightning.rollout.loader import EncodedPrompts, EvalLoader, PromptBatch, TrainLoader
from grpo_lightning.rollout.sampling import SamplingParams, row_seed
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.types import ConfigError, RolloutBatch, TokenRows

log = logging.getLogger(__name__)

STAGE_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


@dataclass(frozen=True)
class EvalBatch:
    """Rollouts of an evaluation: one a prompt for accuracy, and several for pass@k where that is asked for."""

    single: RolloutBatch
    sampled: RolloutBatch | None

    def to(self, device: torch.device) -> EvalBatch:
        return EvalBatch(self.single.to(device), self.sampled and self.sampled.to(device))


class RolloutDataModule(pl.LightningDataModule):
    """Turns a task's prompts into scored rollouts of the module's current policy.

    The rollouts are made in ``on_after_batch_transfer``, which Lightning calls in the main process after the last
    update and right before ``training_step``: they are exactly on-policy whatever the loader prefetches.

    Args:
        task: where prompts and gold answers come from.
        prompts_per_step: prompts of one training step, over all devices.
        group_size: completions a prompt.
        sampling: how training completions are sampled.
        val_sampling: how the one completion a prompt of validation, test and predict is sampled: greedily unless
            told otherwise.
        val_batch_size: prompts evaluated at a time, a device.
        pass_at_k: log the unbiased pass@k for these k as well (arXiv 2107.03374), from ``pass_samples`` completions a
            prompt, drawn like training ones.
        pass_samples: n of pass@k; left out, the largest k.
        max_prompt_tokens: the limit on a prompt; ``None`` for none.
        overlong: what becomes of a longer one: ``drop`` it (the count is logged), or ``truncate-left``.
        seed: of shuffling and sampling; left out, the seed of ``seed_everything``.
    """

    def __init__(
        self,
        task: Task,
        prompts_per_step: int = 8,
        group_size: int = 8,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - jsonargparse shows it as the default
        val_sampling: SamplingParams = SamplingParams(temperature=0.0),  # noqa: B008
        val_batch_size: int = 64,
        pass_at_k: list[int] | None = None,
        pass_samples: int | None = None,
        max_prompt_tokens: int | None = None,
        overlong: Literal["drop", "truncate-left"] = "drop",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.sampling = sampling
        self.val_sampling = val_sampling.filled_from(sampling)
        self.val_batch_size = val_batch_size
        self.pass_at_k = pass_at_k or []
        self.pass_samples = max(self.pass_at_k, default=0) if pass_samples is None else pass_samples
        self.max_prompt_tokens = max_prompt_tokens
        self.overlong = overlong
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._prompts: dict[Split, EncodedPrompts] = {}
        self._validate()

    def _validate(self) -> None:
        self.sampling.validate("data.sampling")
        self.val_sampling.validate("data.val_sampling")
        counts = {
            "prompts_per_step": self.prompts_per_step,
            "group_size": self.group_size,
            "val_batch_size": self.val_batch_size,
            "max_prompt_tokens": self.max_prompt_tokens,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}: must be at least 1, not {value}")
        if self.pass_at_k and not 1 <= min(self.pass_at_k) <= max(self.pass_at_k) <= self.pass_samples:
            raise ConfigError(
                f"data.pass_at_k: every k must be from 1 to pass_samples ({self.pass_samples}), not {self.pass_at_k}"
            )
        if self.pass_at_k and self.sampling.temperature == 0:
            raise ConfigError("data.pass_at_k: needs samples that differ: set data.sampling.temperature above 0")

    # -- prompts ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load and tokenise the splits of a stage, before any model is loaded.

        Raises:
            ConfigError: a split is empty, or no prompt of it fits.
        """
        if self.trainer is not None and self.prompts_per_step < self.trainer.world_size:
            raise ConfigError(
                f"data.prompts_per_step: {self.prompts_per_step} prompts cannot be dealt out to "
                f"{self.trainer.world_size} devices: raise it"
            )
        policy = self._module.policy_config
        tokenizer = load_tokenizer(policy.path, policy.revision, self.task.chat_template)
        for split in STAGE_SPLITS[stage]:
            if split in self._prompts:
                continue
            rows = self.task.prompts(split)
            if not rows:
                raise ConfigError(f"data.task: the {split} split of {type(self.task).__name__} has no rows")
            self._prompts[split] = encoded = EncodedPrompts(rows, tokenizer, self.max_prompt_tokens, self.overlong)
            if encoded.overlong:
                done = "dropped" if self.overlong == "drop" else "truncated on the left"
                log.warning(
                    "%d of %d %s prompts are longer than max_prompt_tokens=%s and were %s",
                    encoded.overlong, len(rows), split, self.max_prompt_tokens, done,
                )  # fmt: skip

    def train_dataloader(self) -> TrainLoader:
        self._train_loader = TrainLoader(self._prompts["train"], self.prompts_per_step, self.seed, *self._ranks)
        return self._train_loader

    def val_dataloader(self) -> EvalLoader:
        return EvalLoader(self._prompts["val"], "val", self.val_batch_size, *self._ranks)

    def test_dataloader(self) -> EvalLoader:
        return EvalLoader(self._prompts["test"], "test", self.val_batch_size, *self._ranks)

    def predict_dataloader(self) -> EvalLoader:
        return self.test_dataloader()

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def on_after_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> Any:
        """Make of a batch of prompts what the running stage learns from, or is measured on."""
        assert self.trainer is not None
        if not self.trainer.training:
            single = self.rollout(batch, 1, self.val_sampling)
            sampled = self.rollout(batch, self.pass_samples, self.sampling) if self.pass_at_k else None
            return EvalBatch(single, sampled)
        if self._module.learns_from == "demonstrations":
            made: Any = self.demonstrations(batch)
        else:
            made = self.rollout(batch, self.group_size, self.sampling)
        self._train_loader.step += 1
        return made

    def rollout(self, batch: PromptBatch, group_size: int, sampling: SamplingParams) -> RolloutBatch:
        """Sample and score ``group_size`` completions of every prompt, on the policy's device."""
        policy: Policy = self._module.policy
        started = time.perf_counter()
        seeds = [row_seed(self.seed, key, member) for key in batch.keys for member in range(group_size)]
        with self._forward_context():
            completions = generate(policy, batch.prompt_ids, group_size, sampling, seeds)
        sampled = time.perf_counter()
        prompts = [prompt for prompt in batch.prompts for _ in range(group_size)]
        rollouts = score(self._module.verifiers, prompts, completions)
        verified = time.perf_counter()
        prompt_ids = [ids for ids in batch.prompt_ids for _ in range(group_size)]
        return RolloutBatch(
            rollouts=rollouts,
            group_size=group_size,
            tokens=token_rows(prompt_ids, [completion.token_ids for completion in completions], policy.pad_token_id),
            logprobs_NT=right_padded([completion.logprobs for completion in completions]),
            rewards_N=torch.tensor([rollout.reward for rollout in rollouts]),
            temperature=sampling.temperature,
            max_new_tokens=sampling.cap,
            seconds={"rollout": sampled - started, "verify": verified - sampled},
        ).to(policy.device)

    def demonstrations(self, batch: PromptBatch) -> TokenRows:
        """The prompts with their worked solutions, for supervised training.

        Raises:
            ConfigError: a row has no solution.
        """
        policy: Policy = self._module.policy
        completions = []
        for prompt in batch.prompts:
            if prompt.solution is None:
                raise ConfigError(
                    f"data.task: {type(self.task).__name__} has a row without a worked solution, which SFT learns from"
                )
            completions.append(encode_completion(policy.tokenizer, prompt.solution, policy.terminators[0]))
        return token_rows(batch.prompt_ids, completions, policy.pad_token_id).to(policy.device)

    def sample_prompts(self, count: int) -> PromptBatch:
        """A few training prompts, the same on every call, without moving on in the training set."""
        prompts = self._prompts["train"]
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return prompts.batch({f"sample/{row}": row for row in order[:count]})

    @property
    def _module(self) -> Any:
        assert self.trainer is not None, (
            "the data module needs a Trainer: its rollouts are those of the Trainer's module"
        )
        return self.trainer.lightning_module

    @property
    def _ranks(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _forward_context(self) -> Any:
        assert self.trainer is not None
        return self.trainer.precision_plugin.forward_context()
