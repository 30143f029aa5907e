"""What every algorithm shares: the policy, the optimizer step, the end of a training step, and checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from grpo_lightning.algorithms.checkpoint import LoadableModule, check_checkpoint, keep_trained
from grpo_lightning.algorithms.evaluation import EvaluatedModule
from grpo_lightning.algorithms.metrics import MeasuredModule, StepMetrics
from grpo_lightning.algorithms.optimization import Optimization
from grpo_lightning.algorithms.options import check_options
from grpo_lightning.algorithms.passes import Passes
from grpo_lightning.algorithms.supported import refuse_unsupported
from grpo_lightning.algorithms.totals import Totals
from grpo_lightning.algorithms.update import Losses, SkippedSteps, UpdateStep
from grpo_lightning.curves import CURVES
from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import set_logged_step
from grpo_lightning.models.config import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.positions import check_length
from grpo_lightning.rollout import Collect, Demonstrations, Experience, PromptBatch, StepEnd, step_ended
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.generate import Chat, generate_texts
from grpo_lightning.rollout.resumed import keep_metrics
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Attempt, TokenRows
from grpo_lightning.verifiers.base import Verifier, by_class_name
from grpo_lightning.verifiers.function import as_verifiers


class PolicyModule(MeasuredModule, EvaluatedModule, LoadableModule, ABC):
    """Base of the algorithms. A subclass writes :meth:`batch_from`, and ``training_step`` out of
    :meth:`optimizer_step_on` and :meth:`finish_step`.

    Args:
        policy: how to load the policy.
        verifiers: judge the completions: one, or a list; with several, the reward is the mean of theirs. The list may
            be empty where ``data.environment`` gives the rewards.
        optimizer: makes the optimizer of the trainable parameters.
        lr_scheduler: stepped once per optimizer step; ``None`` keeps the learning rate.
        max_tokens_per_microbatch: prompt and completion tokens, padding included, of one forward and backward pass; a
            prompt that a group shares counts once. Sets the memory, not the result.
        max_grad_norm: the gradient is scaled down to this norm; ``None`` never.
        shard_optimizer: under DDP, each process keeps the optimizer's state of a share of the parameters (ZeRO stage
            1): less memory, the same weights. Checkpoints hold the whole state.

    Raises:
        ConfigError: a value out of its range.
    """

    compares_groups: ClassVar[bool] = False
    """Whether a group of completions with equal rewards teaches nothing, so that ``data.resample_silent`` may replace
    it."""

    def __init__(
        self,
        policy: PolicyConfig,
        verifiers: list[Verifier] | Verifier,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(
            parameters, lr=1e-5, weight_decay=0.0, fused=True
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_tokens_per_microbatch: int = 8192,
        max_grad_norm: float | None = 1.0,
        shard_optimizer: bool = False,
    ) -> None:
        super().__init__()
        # One training step makes many optimizer steps over micro-batches of differing size.
        self.automatic_optimization = False
        # A checkpoint holds what is trained; the frozen rest comes from `policy.path`.
        self.strict_loading = False
        self.policy_config = PolicyConfig.of(policy)
        self.policy_config.validate()
        tokens, norm = max_tokens_per_microbatch, max_grad_norm
        check_options({
            "max_tokens_per_microbatch": (tokens >= 1, f"must be at least 1, not {tokens}"),
            "max_grad_norm": (norm is None or norm > 0, f"must be above 0, or null for no clipping, not {norm}"),
        })  # fmt: skip
        self.policy: Policy
        self.verifiers = by_class_name(as_verifiers(verifiers))
        self.optimization = Optimization(optimizer, lr_scheduler, shard_optimizer)
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.max_grad_norm = max_grad_norm
        self.totals = Totals()
        self.skipped = SkippedSteps()
        self.passes: Passes
        self._step = 0
        self._is_restored = False
        self._rates: dict[str, float] = {}

    # -- set-up -----------------------------------------------------------------------------------------------------

    @property
    def has_kl(self) -> bool:
        """Whether the loss has a KL to a frozen reference."""
        return False

    @property
    def wants_reference(self) -> bool:
        """Whether the policy keeps a frozen reference."""
        return self.has_kl

    @property
    def uses_rewards(self) -> bool:
        """Whether rewards are learned from, not only logged."""
        return self.samples_to_learn

    @property
    def compares_rewards(self) -> bool:
        """Whether the loss has the advantages of groups."""
        return False

    def on_data_ready(self, data: RolloutDataModule, stage: str) -> None:
        """Check that the data is made for this algorithm, before the model is loaded."""
        super().on_data_ready(data, stage)
        if data.trainer is not None:
            refuse_unsupported(data.trainer, self)  # once more: a subclass's configure_callbacks may have added some
        if data.resample_silent is not None and not self.compares_groups:
            raise ConfigError(
                f"data.resample_silent: {type(self).__name__} does not compare the completions of a prompt with each "
                "other, so no group is without a signal: remove it"
            )
        if data.curriculum is not None and not self.samples_to_learn:
            raise ConfigError(
                f"data.curriculum: {type(self).__name__} samples nothing to learn from, so prompts have no pass rates "
                "to be drawn by: remove it"
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse what cannot work, and keep the curves of earlier starts.

        This is Lightning's first hook, before any callback copies the module, and before loggers start.
        """
        refuse_unsupported(self.trainer, self)
        keep_metrics(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Check that the policy can be trained, and let the verifiers get ready, before the model is loaded."""
        if stage == "fit":
            self.policy_config.check_trainable()
        for verifier in self.verifiers.values():
            verifier.start()

    def configure_model(self) -> None:
        """Load the policy: Lightning's hook, called when the data has been checked."""
        self.load_policy()
        self.passes = Passes(self.policy, self.max_tokens_per_microbatch)

    def load_policy(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = Policy(
                self.policy_config, chat_template=self.chat_template, with_reference=self.wants_reference
            )
            self.check_lengths()

    def check_lengths(self) -> None:
        """Check that the policy, which has been loaded, has positions for the rows of the data."""
        check_length(self.policy.lm, self.longest_row)

    def trained_sides(self) -> dict[str, list[torch.nn.Parameter]]:
        """The trained parameters, in sides that are clipped by separate norms, logged as ``optim/<side>grad_norm``."""
        return {"": self.policy.trainable_parameters()}

    def optimizer_parameters(self) -> Any:
        """What the optimizer is made of: parameters, or groups of them with options, one for each side."""
        return self.policy.trainable_parameters()

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt may be run once for all of its rows."""
        return self.policy.shares_prompts

    def resting_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer does not change in this step."""
        return []

    def configure_optimizers(self) -> Any:
        # What a subclass makes otherwise, Lightning restores as it was.
        is_own = type(self).configure_optimizers is not PolicyModule.configure_optimizers
        return self.optimization.configure(
            self.optimizer_parameters(), is_resumed=self.trainer.ckpt_path is not None and not is_own
        )

    def on_train_start(self) -> None:
        """Start the clocks; check what hooks of a subclass have made."""
        self.totals.start()
        self.optimization.check(self.trainer)
        if self.trainer.ckpt_path is not None and not self._is_restored:
            name = type(self).__name__
            raise ConfigError(f"{name}.on_load_checkpoint: call super().on_load_checkpoint(checkpoint)")

    @abstractmethod
    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience | Demonstrations:
        """What the next ``training_step`` learns from; called right before it."""

    def on_train_batch_start(self, batch: Experience | Demonstrations, batch_idx: int) -> None:
        """Log at the number of steps done, which Lightning 2.6 counts one too high in some resumed runs."""
        self._step = batch.recipe.step
        set_logged_step(self.trainer, self._step)
        self.collect_logged(self._step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Write the curves. Free the gradients, once all callbacks have seen them: a rollout comes next."""
        self.write_logged()
        self.free_gradients()

    def on_train_end(self) -> None:
        self.write_logged()
        self.totals.stop()

    # -- one training step ------------------------------------------------------------------------------------------

    def optimizer_step_on(
        self,
        tokens: TokenRows,
        rows: Tensor,
        losses: Losses,
        metrics: StepMetrics,
        attempts: Sequence[Attempt] = (),
        keep_gradients: bool = False,
    ) -> None:
        """Make one optimizer step on some rows, in as many micro-batches as the token budget needs.

        Args:
            tokens: all rows of the batch.
            rows: indices of the rows to learn from.
            losses: see :data:`~grpo_lightning.algorithms.update.Losses`.
            metrics: what is logged is added here.
            attempts: those that the step learns from; written to disk if the gradient is not finite.
            keep_gradients: whether gradients that are already there belong to this step.

        Raises:
            NonFiniteError: the gradient was not finite in two consecutive training steps.
        """
        update = self.update_step()
        # The schedule changes the rates below.
        self._rates = {
            f"optim/{side}lr": float(group["lr"])
            for side, group in zip(update.sides, update.optimizer.param_groups, strict=False)
        }
        if not keep_gradients:
            update.optimizer.zero_grad()
        for name in self.loss_names:
            metrics.add(name, 0, 1)
        update.add_gradients(self.passes.cut(tokens, rows, self.shares_prompts), losses, metrics)
        update.finish(metrics, self._step, attempts)

    def update_step(self) -> UpdateStep:
        """The optimizer step that comes next."""
        return UpdateStep(
            trainer=self.trainer,
            backward=self.manual_backward,
            policy=self.policy,
            optimizer=cast(LightningOptimizer, self.optimizers()),
            scheduler=cast(LRScheduler | None, self.lr_schedulers()),
            sides=self.trained_sides(),
            resting=self.resting_parameters(),
            max_grad_norm=self.max_grad_norm,
            skipped=self.skipped,
        )

    def free_gradients(self) -> None:
        cast(LightningOptimizer, self.optimizers()).zero_grad()

    def finish_step(self, batch: Experience | Demonstrations, metrics: StepMetrics) -> dict[str, float]:
        """Log a step's means, over its micro-batches and all ranks, and tell the callbacks that it is done.

        Args:
            batch: what was learned from; an experience with all that was computed for it.
            metrics: what the step has added up.

        Returns:
            What was logged, by name.
        """
        logged = metrics.reduce(self.trainer.strategy)
        logged |= self.totals.after(logged) | self._rates
        logged["optim/skipped_steps"] = float(self.skipped.count)
        if any(verifier.unsafe for verifier in self.verifiers.values()):
            logged["reward/unsafe_sandbox"] = 1.0
        for name, value in logged.items():
            curve = CURVES.get(name)
            self.log(name, value, prog_bar=curve is not None and curve.bar is not None)
        step_ended(self, StepEnd(batch.recipe.step, logged, batch if isinstance(batch, Experience) else None))
        return logged

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: str | Sequence[str | Chat], sampling: SamplingParams | None = None, seed: int = 0
    ) -> Any:
        """Complete prompts with the policy, on its device; loads the policy if that has not been done.

        Args:
            prompts: a text, or a list of texts and chats. A text becomes a user's turn of the chat template.
            sampling: how to sample. Default: greedily.
            seed: seeds the first completion; each further one has the next seed.

        Returns:
            The completion of a text; of a list, a list of completions.
        """
        self.load_policy()
        given = [prompts] if isinstance(prompts, str) else prompts
        texts = generate_texts(self.policy, given, sampling or SamplingParams(temperature=0.0), seed)
        return texts[0] if isinstance(prompts, str) else texts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: under LoRA a checkpoint does not hold the frozen base."""
        keep_trained(checkpoint, self)
        checkpoint["skipped_steps"] = self.skipped.count
        checkpoint["totals"] = self.totals.state()
        self.optimization.save(checkpoint, self.trainer)
        checkpoint["reference"] = self.policy.reference_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_checkpoint(checkpoint, self)
        self._is_restored = True
        self.skipped.count = checkpoint["skipped_steps"]
        self.totals.load(checkpoint["totals"])
        self.optimization.load(checkpoint)
        self.policy.load_reference_state(checkpoint["reference"])
