"""The rollout DataModule: prompts in, scored groups of completions out, right before every training step."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch

from grpo_lightning.environments.base import Environment
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.ahead import LookAhead
from grpo_lightning.rollout.checks import check_options, check_trainer
from grpo_lightning.rollout.collector import Collector
from grpo_lightning.rollout.curriculum import Curriculum, CurriculumName, named_curriculum
from grpo_lightning.rollout.engines.base import Engine
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.events import continues, run_callbacks
from grpo_lightning.rollout.experience import Demonstrations, EvaluationBatch, Experience, Purpose, Recipe
from grpo_lightning.rollout.learner import Learner, learner_of
from grpo_lightning.rollout.loader import Draw, EvalLoader, TrainLoader, parts_of
from grpo_lightning.rollout.pass_rates import PassRateKeeper, PassRates
from grpo_lightning.rollout.prompts import EncodedPrompts, PromptBatch
from grpo_lightning.rollout.refinement import RefinementConfig
from grpo_lightning.rollout.resampling import ResampleConfig
from grpo_lightning.rollout.sampler import Sampler
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.rollout.signals import EndTogether
from grpo_lightning.rollout.splits import load_splits, longest_prompt
from grpo_lightning.rollout.steps import StepCount
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.types import Prompt

FEEDBACK_TOKENS = 256
"""Room for the turn between two attempts that an engine is asked for. Verifiers keep their feedback shorter."""

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
        group_size: completions per prompt.
        sampling: how training completions are sampled.
        val_sampling: how the one completion per prompt of validation, test and predict is sampled. Default: greedily.
        val_batch_size: prompts evaluated at a time, per device.
        pass_at_k: log the unbiased pass@k for this k, or for each of these, as well (arXiv 2107.03374), from
            ``pass_samples`` completions per prompt, sampled as in training.
        pass_samples: n of pass@k. Default: the largest k.
        max_prompt_tokens: the limit on a prompt; ``None`` for none.
        refinement: gives failed completions another attempt after the verifier's feedback. Default: none.
        resample_silent: replaces groups whose completions all got the same reward, before the update. Default: none.
        curriculum: draws prompts by their pass rates: ``uniform`` (:class:`UniformDraw`), ``informative``
            (:class:`Informative`), ``easy_to_hard`` (:class:`EasyToHard`), or a class. Default: passes over all.
        environment: replies to the policy, turn by turn, in training and in evaluations. Default: every completion is
            judged at once.
        rollout_rows_at_once: the most completions that decode together: limits the memory of a rollout, and does not
            change completions (but with ``refinement``, which failures get another attempt can depend on which end
            together). Default: all of a step.
        overlong: what to do with a longer prompt: ``drop`` it (the count is logged), or ``truncate-left``.
        seed: seeds shuffling and sampling. Default: the seed of ``seed_everything``.
        engine: samples the completions. Default: ``InProcessEngine``, which decodes in the trainer's process.
        rollouts_ahead: 1 samples the next step while this one is learned, from weights that are one step old: a step
            takes as long as the longer of the two. For engines outside of the process. Default: on-policy.
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
        resample_silent: ResampleConfig | None = None,
        curriculum: Curriculum | CurriculumName | None = None,
        environment: Environment | None = None,
        max_prompt_tokens: int | None = None,
        rollout_rows_at_once: int | None = None,
        overlong: Literal["drop", "truncate-left"] = "drop",
        seed: int | None = None,
        engine: Engine | None = None,
        rollouts_ahead: int = 0,
    ) -> None:
        super().__init__()
        self.task = task
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.sampling = sampling
        self.val_sampling = val_sampling.filled_from(self.sampling)
        self.val_batch_size = val_batch_size
        self.pass_at_k = [pass_at_k] if isinstance(pass_at_k, int) else pass_at_k or []
        self.pass_samples = max(self.pass_at_k, default=0) if pass_samples is None else pass_samples
        self.refinement = refinement
        self.resample_silent = resample_silent
        self.curriculum = named_curriculum(curriculum)
        self.environment = environment
        self.max_prompt_tokens = max_prompt_tokens
        self.rollout_rows_at_once = rollout_rows_at_once
        self.overlong = overlong
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.engine = InProcessEngine() if engine is None else engine
        self.rollouts_ahead = rollouts_ahead
        self._prompts: dict[Split, EncodedPrompts] = {}
        self._ranks: tuple[int, int]  # this one and their number
        self._learner: Learner
        self._sampler: Sampler | None = None
        self._rates: PassRates | None = None
        # Where a resumed run begins. Lightning tells the loader itself, but not where an epoch had come to its end.
        self._place: dict[str, Any] | None = None
        self._train_loader: TrainLoader
        self._evaluated_loader: EvalLoader
        self._steps: StepCount
        check_options(self)

    def check_devices(self, devices: int) -> None:
        """Check that every device has a prompt in each step.

        Raises:
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
            ConfigError: a split is empty, no prompt of it fits, a verifier needs what the data or all rows lack, or the
                module cannot learn from this data.
        """
        assert self.trainer is not None, "attach the data module to a Trainer, whose module it samples from"
        trainer, learner = self.trainer, learner_of(self.trainer)
        self._ranks, self._learner = (trainer.global_rank, trainer.world_size), learner
        self.prepare(learner, trainer, stage)
        self._sampler = self._make_sampler(learner, trainer, stage)
        sampling = self.sampling if stage == "fit" else None
        self.engine.check(learner.policy_config, self.asked_of_engine(self._longest_prompt), sampling)
        for callback in run_callbacks(trainer):
            if stage == "fit" and not continues(trainer):
                callback.reset()
            callback.on_data_ready(trainer, self, stage)
        if stage == "fit":
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            own = (StepCount, EndTogether, PassRateKeeper)
            callbacks[:] = [callback for callback in callbacks if not isinstance(callback, own)]
            # They come first, so that what the others save counts the step.
            self._steps = StepCount(lambda: self._train_loader)
            rates = [] if self._rates is None else [PassRateKeeper(self._rates)]
            callbacks[:0] = [self._steps, EndTogether(), *rates]

    def _make_sampler(self, learner: Learner, trainer: pl.Trainer, stage: str) -> Sampler:
        engine, at_once = self.engine, self.rollout_rows_at_once
        collector = Collector(learner, engine, trainer.precision_plugin.forward_context, at_once)
        ahead = LookAhead(learner, engine, at_once) if self.rollouts_ahead and stage == "fit" else None
        longest = self.longest_row(samples_to_learn=True)
        return Sampler(learner, engine, collector, ahead, longest, lambda: int(trainer.global_step))

    def prepare(self, learner: Learner, trainer: pl.Trainer, stage: str) -> None:
        """Load and check the data: the part of :meth:`setup` for which the trainer need not have started."""
        self.check_devices(trainer.world_size)
        check_trainer(trainer)
        self._prompts = load_splits(self, STAGE_SPLITS[stage], learner, self._prompts, trainer.world_size)
        if stage == "fit" and self.curriculum is not None and (self._rates is None or not continues(trainer)):
            self._rates = PassRates(self.prompts("train"), self.curriculum.pass_rates)
        learner.on_data_ready(self, stage)

    def train_dataloader(self) -> TrainLoader:
        shape = (self.prompts_per_step, self.recipe("train"), *self._ranks, self.task.shares)
        trainer, before = cast(pl.Trainer, self.trainer), getattr(self, "_train_loader", None)
        place = self._place if trainer.ckpt_path is not None else None  # a test before this fit may have left one
        if place is None and before is not None and trainer.global_step:
            place = before.state_dict()  # the same trainer continues
        self._train_loader = TrainLoader(self._prompts["train"], *shape, self._draw(), trainer.limit_train_batches)
        if place is not None:
            self._train_loader.load_state_dict(place)
        self._place = None
        return self._train_loader

    def _draw(self) -> Draw | None:
        curriculum, rates = self.curriculum, self._rates
        if curriculum is None or rates is None:
            return None
        parts = [(part.rows, part.weight) for part in parts_of(self.prompts("train"), self.task.shares)]
        return lambda step, count: curriculum.draw(rates, step, count, self.seed, parts)

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("val", "val")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test", "test")

    def predict_dataloader(self) -> EvalLoader:
        return self._eval_loader("test", "predict")

    def _eval_loader(self, split: Split, purpose: Purpose) -> EvalLoader:
        loader = EvalLoader(self._prompts[split], split, self.recipe(purpose), self.val_batch_size, *self._ranks)
        self._evaluated_loader = loader
        return loader

    def end_evaluation(self) -> None:
        """Let the running evaluation end after its current batch, as if the split had no further rows."""
        self._evaluated_loader.ends_early = True

    def recipe(self, purpose: Purpose) -> Recipe:
        """How attempts are made: groups to learn from, or one attempt per prompt to be measured."""
        if purpose == "train":
            options = (self.group_size, self.sampling, self.refinement, self.environment, self.seed)
            return Recipe(purpose, *options, resample=self.resample_silent)
        return Recipe(purpose, 1, self.val_sampling, self.refinement, self.environment, self.seed)

    # -- rollouts ---------------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> PromptBatch:
        """Begin a step: the curves of the one before have been written by now, and it has been validated."""
        trainer = cast(pl.Trainer, self.trainer)
        if trainer.training:
            self._steps.next_step_begins(trainer)
        return batch

    def on_after_batch_transfer(
        self, batch: PromptBatch, dataloader_idx: int
    ) -> Experience | Demonstrations | EvaluationBatch:
        """Turn a batch of prompts into what the running stage learns from or is measured on."""
        if not cast(pl.Trainer, self.trainer).training:
            return self._evaluated(batch)
        if batch.recipe.step != self._train_loader.step:
            raise RuntimeError(
                f"{type(self._learner).__name__}.training_step did not report its end: call "
                "grpo_lightning.rollout.step_ended(self, StepEnd(...)) as its last line"
            )
        return self._learner.batch_from(batch, self._collect_step)

    @property
    def steps_done(self) -> int:
        """Training steps that have been learned from, those before a resume included."""
        return self._train_loader.step

    def longest_row(self, samples_to_learn: bool) -> int:
        """Tokens of the longest prompt with the longest completions; the turns between attempts are not counted.

        Args:
            samples_to_learn: whether training samples; else only evaluation does.
        """
        if self.environment is not None:
            return self.environment.max_tokens
        return self._longest_prompt + self._room_for_completions(samples_to_learn and "train" in self._prompts)

    def asked_of_engine(self, longest_prompt: int) -> int:
        """Tokens of the longest row that an engine is asked for, given the longest prompt."""
        if self.environment is not None:
            return self.environment.max_tokens
        turns = 0 if self.refinement is None else self.refinement.attempts * FEEDBACK_TOKENS
        return longest_prompt + self._room_for_completions(samples_to_learn=True) + turns

    @property
    def _longest_prompt(self) -> int:
        return longest_prompt(self._prompts)

    def _room_for_completions(self, samples_to_learn: bool) -> int:
        """Tokens of the longest completions at one prompt."""
        cap = self.val_sampling.cap
        if self.pass_at_k or samples_to_learn:
            cap = max(cap, self.sampling.cap)
        return (1 if self.refinement is None else 1 + self.refinement.attempts) * cap

    def collect(self, prompts: PromptBatch) -> Experience:
        """Attempts of the module's current policy at some prompts, by the recipe that they carry."""
        assert self._sampler is not None, "attach the data module to a Trainer, whose module it samples from"
        return self._sampler.collect(prompts)

    def _collect_step(self, prompts: PromptBatch) -> Experience:
        assert self._sampler is not None
        return self._sampler.collect_step(prompts, self._train_loader.batch)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, the pass rates, and what has been sampled ahead.

        A run that is broken off does not wait for more of it.
        """
        state: dict[str, Any] = {"place": self._train_loader.state_dict()} if hasattr(self, "_train_loader") else {}
        if self._sampler is not None:
            state |= self._sampler.state(wait=not cast(pl.Trainer, self.trainer).interrupted)
        if self._rates is not None:
            state["pass_rates"] = self._rates.state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict.get("place")
        if self._sampler is not None:
            self._sampler.load(state_dict)
        if self._rates is not None and "pass_rates" in state_dict:
            self._rates.load(state_dict["pass_rates"])

    def teardown(self, stage: str) -> None:
        """Stop the engine; the next stage may run with other weights."""
        if self._sampler is not None:
            self._sampler.stop()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the engine when a run breaks off."""
        self.teardown("exception")

    def prompts(self, split: Split) -> list[Prompt]:
        """The prompts of a split that fit, in order. The split must be one of the running stage."""
        return self._prompts[split].prompts

    def prompt_lengths(self, split: Split) -> list[int]:
        """Tokens of each prompt of :meth:`prompts`."""
        return [len(ids) for _, ids in self._prompts[split].rows]

    def sample(self, count: int) -> Experience:
        """Attempts at a few training prompts, the same on every call, without moving on in the training set."""
        return self.collect(self.sample_prompts(count))

    def sample_prompts(self, count: int) -> PromptBatch:
        """A few training prompts, the same on every call, without moving on in the training set."""
        prompts = self._prompts["train"]
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.seed)).tolist()
        recipe = replace(self.recipe("train"), refinement=None, resample=None)
        return prompts.batch({f"sample/{row}": row for row in order[:count]}, recipe)

    def _evaluated(self, prompts: PromptBatch) -> EvaluationBatch:
        single = self.collect(prompts)
        if not self.pass_at_k:
            return EvaluationBatch(single, None)
        recipe = replace(prompts.recipe, group_size=self.pass_samples, sampling=self.sampling, refinement=None)
        return EvaluationBatch(single, self.collect(replace(prompts, recipe=recipe)))
