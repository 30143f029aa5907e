"""The rollout DataModule: prompts in, scored groups of completions out, right before every training step."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.tokenizer import encode_completion, load_tokenizer
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.collector import Collector, EvalBatch
from grpo_lightning.rollout.loader import EncodedPrompts, EvalLoader, PromptBatch, TrainLoader
from grpo_lightning.rollout.records import TokenCharacters, records
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.tasks.controls import check_sample
from grpo_lightning.types import Credit, RolloutBatch, TokenRows
from grpo_lightning.verifiers.base import Verifier

log = logging.getLogger(__name__)

STAGE_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


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
        pass_at_k: log the unbiased pass@k for this k, or for each of these, as well (arXiv 2107.03374), from
            ``pass_samples`` completions a prompt, drawn like training ones.
        pass_samples: n of pass@k; left out, the largest k.
        max_prompt_tokens: the limit on a prompt; ``None`` for none.
        refinement: gives failed completions another attempt after the verifier's feedback; left out, none.
        rollout_rows_at_once: completions that decode together at the most: sets the memory of the rollout, and no
            completion (but with ``refinement``, which failures are followed can depend on which end together). Left
            out, all of a step.
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
        pass_at_k: list[int] | int | None = None,
        pass_samples: int | None = None,
        refinement: RefinementConfig | None = None,
        max_prompt_tokens: int | None = None,
        rollout_rows_at_once: int | None = None,
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
        self.pass_at_k = [pass_at_k] if isinstance(pass_at_k, int) else pass_at_k or []
        self.pass_samples = max(self.pass_at_k, default=0) if pass_samples is None else pass_samples
        self.refinement = refinement
        self.max_prompt_tokens = max_prompt_tokens
        self.rollout_rows_at_once = rollout_rows_at_once
        self.overlong = overlong
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._prompts: dict[Split, EncodedPrompts] = {}
        self._characters: TokenCharacters | None = None
        self._validate()

    def _validate(self) -> None:
        self.sampling.validate("data.sampling")
        self.val_sampling.validate("data.val_sampling")
        if self.refinement is not None:
            self.refinement.validate(self.sampling.temperature)
        counts = {
            "prompts_per_step": self.prompts_per_step,
            "group_size": self.group_size,
            "val_batch_size": self.val_batch_size,
            "max_prompt_tokens": self.max_prompt_tokens,
            "rollout_rows_at_once": self.rollout_rows_at_once,
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

    def check_devices(self, devices: int) -> None:
        """Raises:
        ConfigError: a step has fewer prompts than there are devices.
        """
        if self.prompts_per_step < devices:
            raise ConfigError(
                f"data.prompts_per_step: a step has {self.prompts_per_step} prompts, fewer than the {devices} devices "
                f"that share them: set it to at least {devices}"
            )

    # -- prompts ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Load and tokenise the splits of a stage, before any model is loaded.

        Raises:
            ConfigError: a split is empty, no prompt of it fits, or a row to be learned from has no worked solution, or
                all rows lack what a verifier needs.
        """
        if self.trainer is not None:
            self.check_devices(self.trainer.world_size)
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ConfigError(
                "trainer.overfit_batches: steps draw their prompts themselves here: make the task small instead, by "
                "data.task.init_args.limit or train_size"
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
            if split != "train" and len(encoded) < self._ranks[1]:
                raise ConfigError(
                    f"data.task: the {split} split has {len(encoded)} rows, fewer than there are devices "
                    f"({self._ranks[1]}): give it more, or take fewer devices"
                )
            if encoded.overlong:
                done = "dropped" if self.overlong == "drop" else "truncated on the left"
                log.warning(
                    "%d of %d %s prompts are longer than max_prompt_tokens=%s and were %s",
                    encoded.overlong, len(rows), split, self.max_prompt_tokens, done,
                )  # fmt: skip
        for split in STAGE_SPLITS[stage]:
            for verifier in self._module.verifiers.values():
                self._require_judgeable(split, verifier)
            prompts = [prompt for prompt, _ in self._prompts[split].rows]
            for warning in check_sample(self.task, split, prompts, list(self._module.verifiers.values())):
                log.warning(warning)
        if stage == "fit" and self._module.learns_from == "demonstrations":
            self._require_solutions()

    def _require_judgeable(self, split: Split, verifier: Verifier) -> None:
        # One row that lacks something is an error when it is judged, and counted; all of them are a mistake.
        for prompt, _ in self._prompts[split].rows:
            try:
                verifier.require(prompt)
                return
            except ValueError as error:
                lacks = error
        raise ConfigError(
            f"model.verifiers: {type(verifier).__name__} can judge no row of the {split} split: {lacks}; take another "
            "verifier, or give the rows what it needs (by answer_column and metadata_columns of Tabular)"
        )

    def _require_solutions(self) -> None:
        for prompt, _ in self._prompts["train"].rows:
            if prompt.solution is None:
                raise ConfigError(
                    f"data.task: SFT learns from worked solutions, and {type(self.task).__name__} has none of the row "
                    f"with the prompt {prompt.messages[-1]['content'][:80]!r}: {self.task.solution_mend}"
                )

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
            return self._evaluation_batch(batch)
        if self._module.learns_from == "demonstrations":
            return self.demonstrations(batch)
        return self.collector.rollouts(batch, self.group_size, self.sampling, self.refinement)

    def step_done(self) -> None:
        """Count a step whose batch has been learned from: one that broke off before that is made again on resume."""
        self._train_loader.step += 1

    @property
    def longest_row(self) -> int:
        """Tokens of the longest prompt with the longest completions; the turns between attempts are left out."""
        cap = self.val_sampling.cap
        if self.pass_at_k or ("train" in self._prompts and self._module.learns_from == "rollouts"):
            cap = max(cap, self.sampling.cap)
        attempts = 1 if self.refinement is None else 1 + self.refinement.attempts
        return max(len(ids) for split in self._prompts.values() for _, ids in split.rows) + attempts * cap

    @property
    def steps_done(self) -> int:
        """Training steps that have been learned from, those before a resume included."""
        return self._train_loader.step

    def records(self, batch: RolloutBatch, credit: Credit | None, tokens: bool = True) -> list[dict[str, Any]]:
        """The attempts of a training batch as plain records: see :func:`~grpo_lightning.rollout.records.records`."""
        if self._characters is None:
            self._characters = TokenCharacters(self._module.policy.tokenizer)
        distilled = self.refinement is not None and self.refinement.mode == "distill"
        return records(batch, credit, self._characters if tokens else None, distilled)

    @property
    def collector(self) -> Collector:
        """Makes rollouts of the module's current policy."""
        assert self.trainer is not None, "rollouts are those of a Trainer's module"
        module = self._module
        context = self.trainer.precision_plugin.forward_context
        return Collector(module.policy, module.verifiers, self.seed, context, module.phases, self.rollout_rows_at_once)

    def _evaluation_batch(self, batch: PromptBatch) -> EvalBatch:
        collector = self.collector
        single = collector.rollouts(batch, 1, self.val_sampling).rollouts
        refined = None
        if self.refinement is not None and self.refinement.val_feedback != "none":
            refined = collector.refined(batch, single, self.val_sampling, self.refinement)
        sampled = None
        if self.pass_at_k:
            sampled = collector.rollouts(batch, self.pass_samples, self.sampling).rollouts
        return EvalBatch(single, refined, sampled, self.pass_samples)

    def demonstrations(self, batch: PromptBatch) -> TokenRows:
        """The prompts with their worked solutions, for supervised training."""
        policy: Policy = self._module.policy
        completions = []
        for prompt in batch.prompts:
            assert prompt.solution is not None, "setup refuses such rows"
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
