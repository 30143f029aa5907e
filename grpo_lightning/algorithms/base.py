"""What every algorithm shares: the policy, the micro-batched optimizer step, the log, and checkpoints."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from grpo_lightning.algorithms.evaluation import EvaluatedModule
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import Microbatch, microbatches
from grpo_lightning.algorithms.nonfinite import SkippedSteps
from grpo_lightning.algorithms.optimization import initial_rates, optimizer_and_schedule, take_up_configured
from grpo_lightning.algorithms.supported import refuse_unsupported
from grpo_lightning.algorithms.totals import Totals
from grpo_lightning.curves import find
from grpo_lightning.errors import ConfigError
from grpo_lightning.functional import length_mask
from grpo_lightning.lightning_private import set_logged_step
from grpo_lightning.models.loading import PolicyConfig
from grpo_lightning.models.policy import Policy
from grpo_lightning.models.positions import check_length
from grpo_lightning.phases import Phases
from grpo_lightning.rollout import Collect, Demonstrations, Experience, PromptBatch, StepEnd, step_ended
from grpo_lightning.speed.shared_prompt import PredictingStates
from grpo_lightning.types import Attempt, TokenRows
from grpo_lightning.verifiers.base import Verifier, by_class_name
from grpo_lightning.verifiers.function import as_verifiers

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
"""The format of what :meth:`PolicyModule.on_save_checkpoint` writes. Checkpoints without a number have format 1."""

Losses = Callable[[Microbatch], Iterator[Tensor]]
"""A micro-batch's shares of the losses of the whole step.

Each is propagated back before the next one is asked for: the activations of two models need not live together.
"""


class PolicyModule(EvaluatedModule, ABC):
    """Base of the algorithms. A subclass writes :meth:`batch_from`, and ``training_step`` out of
    :meth:`optimizer_step_on` and :meth:`finish_step`.

    Args:
        policy: how to load the policy.
        verifiers: judge the completions: one, or a list; with several, the reward is the mean of theirs.
        optimizer: of the trainable parameters.
        lr_scheduler: stepped once an optimizer step; ``None`` keeps the learning rate.
        max_tokens_per_microbatch: prompt and completion tokens, padding included, of one forward and backward pass; a
            prompt that a group shares counts once. Sets the memory, never the result.
        max_grad_norm: the gradient is scaled down to this norm; ``None`` never.

    Raises:
        ConfigError: a value out of its range, or no verifier.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("policy/loss",)
    step_means: ClassVar[tuple[str, ...]] = (
        "policy/loss",
        "policy/entropy",
        "optim/grad_norm",
        "throughput/padding_efficiency",
        "throughput/train_tokens_per_s",
        "time/update_s",
    )
    step_maxima: ClassVar[tuple[str, ...]] = ()
    step_roots: ClassVar[tuple[str, ...]] = ()

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
    ) -> None:
        super().__init__()
        # One training step makes many optimizer steps over micro-batches of differing size.
        self.automatic_optimization = False
        # A checkpoint holds what is trained; the frozen rest comes from `policy.path`.
        self.strict_loading = False
        self.policy_config = PolicyConfig.of(policy)
        self.policy_config.validate()
        if not verifiers:
            raise ConfigError("model.verifiers: give at least one, such as [{class_path: MathVerifier}]")
        if max_tokens_per_microbatch < 1:
            raise ConfigError(f"model.max_tokens_per_microbatch: must be at least 1, not {max_tokens_per_microbatch}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"model.max_grad_norm: must be above 0, or null for no clipping, not {max_grad_norm}")
        self.policy: Policy
        self.verifiers = by_class_name(as_verifiers(verifiers))
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.max_grad_norm = max_grad_norm
        self.phases = Phases()
        self.totals = Totals()
        self.skipped = SkippedSteps()

    # -- set-up -----------------------------------------------------------------------------------------------------

    @property
    def wants_reference(self) -> bool:
        """Whether the loss has a KL to a frozen reference."""
        return False

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse what cannot work: this is Lightning's first hook, before any callback copies the module."""
        refuse_unsupported(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Let the verifiers get ready, before the model is loaded."""
        for verifier in self.verifiers.values():
            verifier.start()

    def configure_model(self) -> None:
        """Load the policy: Lightning's hook, called when the data has been checked."""
        if not hasattr(self, "policy"):
            self.policy = Policy(
                self.policy_config, chat_template=self.chat_template, with_reference=self.wants_reference
            )
            check_length(self.policy.lm, self.longest_row)

    def trained_sides(self) -> dict[str, list[torch.nn.Parameter]]:
        """What is trained: sides that are clipped by norms of their own, as ``optim/<side>grad_norm``."""
        return {"": self.policy.trainable_parameters()}

    def optimizer_parameters(self) -> Any:
        """What the optimizer is made of: parameters, or groups of them with options, one for each side."""
        return self.policy.trainable_parameters()

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt may be run once for all of its rows."""
        return self.policy.shares_prompts

    def resting_parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer leaves alone in this step."""
        return []

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self._configured()
        self._configured_rates = initial_rates(optimizer, scheduler)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _configured(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
        return optimizer_and_schedule(self.make_optimizer, self.make_scheduler, self.optimizer_parameters())

    def on_train_start(self) -> None:
        """Start the clocks; give a resumed run the learning rate of its config."""
        self.totals.start()
        if self.trainer.ckpt_path is None:
            return
        (optimizer,), schedulers = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        scheduler = cast(Any, schedulers[0].scheduler) if schedulers else None
        if initial_rates(optimizer, scheduler) != self._configured_rates:
            take_up_configured(optimizer, scheduler, *self._configured())

    @abstractmethod
    def batch_from(self, prompts: PromptBatch, collect: Collect) -> Experience | Demonstrations:
        """What ``training_step`` is to learn from; called right before it."""

    def on_train_batch_start(self, batch: Experience | Demonstrations, batch_idx: int) -> None:
        """Log at the number of steps done, which Lightning 2.6 counts one too high in some resumed runs."""
        self._step = batch.recipe.step
        set_logged_step(self.trainer, self._step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Give the gradients' memory back, once all callbacks have seen them: a rollout comes next."""
        cast(LightningOptimizer, self.optimizers()).zero_grad()

    def on_train_end(self) -> None:
        self.totals.stop()

    # -- the optimizer step -----------------------------------------------------------------------------------------

    def optimizer_step_on(
        self,
        tokens: TokenRows,
        rows: Tensor,
        losses: Losses,
        metrics: StepMetrics,
        attempts: Sequence[Attempt] = (),
    ) -> None:
        """One optimizer step on some rows, as many micro-batches as the token budget asks for.

        The losses are divided by counts of the whole step, over all ranks, so the gradient does not depend on how the
        rows are cut; and every rank makes exactly one synchronised backward pass, rows or none.

        Args:
            tokens: all rows of the batch.
            rows: those to learn from now.
            losses: see :data:`Losses`.
            metrics: what is logged is added here.
            attempts: one per row, if these are attempts: written to disk if the step's gradient is not finite.

        Raises:
            NonFiniteError: for the second time running.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        parts = self.cut(tokens, rows, self.shares_prompts)
        for part in parts:
            with self._gradients_of_this_rank(), self.policy.adding_gradients():
                for loss in losses(part):
                    # Strategies average gradients over ranks, and the loss has been divided by the count of all.
                    self.manual_backward(loss * self.trainer.world_size)
            metrics.add("throughput/padding_efficiency", part.real_tokens, part.padded_tokens)
            metrics.add("throughput/train_tokens_per_s", part.tokens.lengths_N.sum())
            metrics.add("total/train_tokens", part.tokens.lengths_N.sum())
        for name in self.loss_names:
            metrics.add(name, 0, 1)
        if not parts or isinstance(self.trainer.strategy, ParallelStrategy):
            # Nothing is added here; ranks exchange what each has added up, and all weights take part in that.
            nothing = [0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
            self.manual_backward(torch.stack(nothing).sum())
        self._apply_gradient(optimizer, metrics, rows, attempts)

    def cut(self, tokens: TokenRows, rows: Tensor, share_prompts: bool) -> list[Microbatch]:
        """The micro-batches of a pass over some rows, with or without gradients."""
        return microbatches(tokens, rows, self.max_tokens_per_microbatch, share_prompts, self.policy.pass_overhead)

    def policy_pass(
        self,
        part: Microbatch,
        metrics: StepMetrics,
        temperature: float = 1.0,
        on_states: Callable[[PredictingStates], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``logprobs_NT`` of the policy, with gradients, and ``mask_NT``; the entropy is logged."""
        mask_NT = length_mask(part.tokens.completion_lengths_N)
        logprobs_NT, entropy_NT = self.policy.logprobs(part.tokens, temperature, on_states=on_states)
        metrics.add_masked("policy/entropy", entropy_NT, mask_NT)
        return logprobs_NT, mask_NT

    def add_loss(self, metrics: StepMetrics, name: str, loss: Tensor) -> Tensor:
        """Log a micro-batch's share of a loss under one of :attr:`loss_names`, and hand it on."""
        metrics.add(name, loss * self.trainer.world_size)
        return loss

    def _apply_gradient(
        self, optimizer: LightningOptimizer, metrics: StepMetrics, rows: Tensor, attempts: Sequence[Attempt]
    ) -> None:
        for parameter in self.resting_parameters():
            parameter.grad = None
        limit = torch.inf if self.max_grad_norm is None else self.max_grad_norm
        sides = self.trained_sides()
        norms = torch.stack([torch.nn.utils.clip_grad_norm_(side, limit).to(self.device) for side in sides.values()])
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]  # the schedule changes them below
        # Gradients are the same on all ranks by now, so all of them decide alike.
        if torch.isfinite(norms).all():
            optimizer.step()
            scheduler = self.lr_schedulers()
            if scheduler is not None:
                cast(torch.optim.lr_scheduler.LRScheduler, scheduler).step()
            for name, norm in zip(sides, norms, strict=True):
                metrics.add(f"optim/{name}grad_norm", norm, 1)
            self.skipped.none()
            return
        offenders = [attempts[row] for row in rows.tolist()] if attempts else []
        name = f"step-{self.trainer.global_step:06d}-rank{self.global_rank}"
        file = Path(self.trainer.default_root_dir) / "nonfinite" / name
        self.skipped.skip(norms.max().item(), self._step, offenders, file)

    def step_metrics(self, *further: str) -> StepMetrics:
        """What a step logs, nothing added yet; ``further`` are names of means beside those of the class."""
        tokens = ("total/rollout_tokens", "total/train_tokens")
        return StepMetrics([*self.step_means, *further], self.step_maxima, tokens, self.step_roots)

    def finish_step(self, batch: Experience | Demonstrations, metrics: StepMetrics) -> None:
        """Log a step's means, over its micro-batches and all ranks, and tell the callbacks that it is done.

        Args:
            batch: what was learned from; an experience with all that has been computed of it.
            metrics: of the step.
        """
        logged = metrics.reduce(self.trainer.strategy)
        self.totals.rollout_tokens += round(logged["total/rollout_tokens"])
        self.totals.train_tokens += round(logged["total/train_tokens"])
        logged |= {f"total/{name}": value for name, value in self.totals.state().items()}
        for name, rate in zip(self.trained_sides(), self._rates, strict=False):
            logged[f"optim/{name}lr"] = rate
        logged["optim/skipped_steps"] = float(self.skipped.count)
        if any(verifier.unsafe for verifier in self.verifiers.values()):
            logged["reward/unsafe_sandbox"] = 1.0
        for name, value in logged.items():
            curve = find(name)
            self.log(name, value, prog_bar=curve is not None and curve.bar is not None, batch_size=1)
        step_ended(self, StepEnd(batch.recipe.step, logged, batch if isinstance(batch, Experience) else None))

    # -- checkpoints ------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **__: Any) -> Any:
        """Refused: a checkpoint holds what is trained, and neither the frozen base nor the module's options."""
        raise ConfigError(
            f"load_from_checkpoint: {checkpoint_path} cannot build a module: load the run's policy/ folder with "
            "transformers or peft, or give the checkpoint as ckpt_path (--ckpt_path) to fit, test or predict"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: under LoRA a checkpoint does not hold the frozen base."""
        trained = self._trained_names()
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["skipped_steps"] = self.skipped.count
        checkpoint["totals"] = self.totals.state()
        checkpoint["reference"] = self.policy.reference_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("format", 1) > CHECKPOINT_FORMAT:
            raise ConfigError(
                f"ckpt_path: the checkpoint has format {checkpoint['format']}, and this version reads formats up to "
                f"{CHECKPOINT_FORMAT}: install a newer grpo-lightning"
            )
        found = checkpoint["state_dict"]
        other = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and (name not in found or found[name].shape != parameter.shape)
        ]
        if other:
            raise ConfigError(
                f"ckpt_path: the checkpoint is of another policy: {len(other)} of the trained tensors are missing "
                f"there or have another shape, such as {other[0]}: give the run's own model.policy options"
            )
        self.skipped.count = checkpoint["skipped_steps"]
        self.totals.load(checkpoint["totals"])
        self.policy.load_reference_state(checkpoint["reference"])

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}
