"""What every algorithm shares: the policy, evaluation, the micro-batched optimizer step, and checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from grpo_lightning.algorithms.evaluation import Evaluation
from grpo_lightning.algorithms.metrics import StepMetrics
from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.models.loading import PolicyConfig
from grpo_lightning.models.policy import Policy, length_mask
from grpo_lightning.phases import Phases
from grpo_lightning.rollout.collector import EvalBatch
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.rollout.records import record
from grpo_lightning.types import ConfigError, Rollout, RunError, TokenRows
from grpo_lightning.verifiers.base import Verifier

log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(rows, logprobs_NT, entropy_NT, mask_NT) -> loss``: a micro-batch's share of the loss of the whole step."""


class NonFiniteError(RunError):
    """The loss or the gradient was not a number in two optimizer steps running."""


class PolicyModule(pl.LightningModule):
    """Base of the algorithms. A subclass writes ``training_step``, out of :meth:`optimizer_step_on`.

    Args:
        policy: how to load the policy.
        verifiers: judge the completions; with several, the reward is the mean of theirs.
        optimizer: of the trainable parameters.
        lr_scheduler: stepped once an optimizer step; ``None`` keeps the learning rate.
        max_tokens_per_microbatch: prompt and completion tokens, padding included, of one forward and backward pass.
            Sets the memory, never the result.
        max_grad_norm: the gradient is scaled down to this norm; ``None`` never.

    Raises:
        ConfigError: a value out of its range, or no verifier.
    """

    learns_from: ClassVar[Literal["rollouts", "demonstrations"]] = "rollouts"
    step_means: ClassVar[tuple[str, ...]] = (
        "policy/loss",
        "policy/entropy",
        "optim/grad_norm",
        "throughput/padding_efficiency",
        "throughput/train_tokens_per_s",
        "time/update_s",
    )

    def __init__(
        self,
        policy: PolicyConfig,
        verifiers: list[Verifier],
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_tokens_per_microbatch: int = 8192,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        super().__init__()
        # One training step makes many optimizer steps over micro-batches of differing size.
        self.automatic_optimization = False
        # A checkpoint holds what is trained; the frozen rest comes from `policy.path`.
        self.strict_loading = False
        policy.validate()
        if not verifiers:
            raise ConfigError("model.verifiers: give at least one, such as [{class_path: MathVerifier}]")
        if max_tokens_per_microbatch < 1:
            raise ConfigError(f"model.max_tokens_per_microbatch: must be at least 1, not {max_tokens_per_microbatch}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"model.max_grad_norm: must be above 0, or null for no clipping, not {max_grad_norm}")
        self.policy_config = policy
        self.policy: Policy
        self.verifiers = _named(verifiers)
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.max_grad_norm = max_grad_norm
        self.phases = Phases()
        self.skipped_steps = 0
        self._skipped_last = False

    @property
    def data(self) -> RolloutDataModule:
        """The data module of the run."""
        return cast(RolloutDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    # -- set-up -----------------------------------------------------------------------------------------------------

    @property
    def wants_reference(self) -> bool:
        """Whether the loss has a KL to a frozen reference."""
        return False

    def setup(self, stage: str) -> None:
        """Refuse what cannot work, and let the verifiers get ready, before the model is loaded."""
        precision = str(self.trainer.precision)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None or precision in ("16-true", "bf16-true"):
            raise ConfigError(
                f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true, and set the type of the "
                "weights by model.policy.dtype"
            )
        for verifier in self.verifiers.values():
            verifier.start()

    def configure_model(self) -> None:
        """Load the policy: Lightning's hook, called when the data has been checked."""
        if not hasattr(self, "policy"):
            task = getattr(getattr(self.trainer, "datamodule", None), "task", None)
            self.policy = Policy(
                self.policy_config,
                chat_template=getattr(task, "chat_template", None),
                with_reference=self.wants_reference,
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.policy.trainable_parameters())
        if self.make_scheduler is None:
            self._configured_lrs = [float(group["lr"]) for group in optimizer.param_groups]
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        if not hasattr(scheduler, "base_lrs"):
            raise ConfigError(
                f"model.lr_scheduler: {type(scheduler).__name__} waits for a metric, but the schedule is stepped with "
                "the optimizer: take one that needs none"
            )
        self._configured_lrs = [float(lr) for lr in scheduler.base_lrs]
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """Give a resumed run the learning rate of its config: the checkpoint brought along its own."""
        if self.trainer.ckpt_path is None:
            return
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for index, group in enumerate(self.trainer.optimizers[0].param_groups):
            restored = schedulers[0].base_lrs[index] if schedulers else group["lr"]
            wanted = self._configured_lrs[index]
            if restored and restored != wanted:
                log.warning("learning rate: %g as configured, in place of the checkpoint's %g", wanted, restored)
                group["lr"] *= wanted / restored
                for scheduler in schedulers:
                    scheduler.base_lrs[index] = wanted

    # -- the optimizer step -----------------------------------------------------------------------------------------

    def optimizer_step_on(
        self,
        tokens: TokenRows,
        rows: Tensor,
        loss_function: LossFunction,
        metrics: StepMetrics,
        temperature: float = 1.0,
        rollouts: list[Rollout] | None = None,
    ) -> None:
        """One optimizer step on some rows, as many micro-batches as the token budget asks for.

        The loss function divides by counts of the whole step, over all ranks, so the gradient does not depend on how
        the rows are cut; and every rank makes exactly one synchronised backward pass, rows or none.

        Args:
            tokens: all rows of the rollout.
            rows: those to learn from now.
            loss_function: see :data:`LossFunction`.
            metrics: what is logged is added here.
            temperature: of the log-probs.
            rollouts: written to disk if the step's gradient is not finite.

        Raises:
            NonFiniteError: for the second time running.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        chunks = [rows[index] for index in microbatches(tokens.lengths_N[rows], self.max_tokens_per_microbatch)]
        for index, chunk in enumerate(chunks):
            part = tokens.select(chunk)
            with self._gradient_sync(index == len(chunks) - 1):
                mask_NT = length_mask(part.completion_lengths_N)
                logprobs_NT, entropy_NT = self.policy.logprobs(part, temperature)
                loss = loss_function(chunk, logprobs_NT, entropy_NT, mask_NT)
                # Strategies average gradients over ranks, and the loss has been divided by the count of all of them.
                self.manual_backward(loss * self.trainer.world_size)
            metrics.add("policy/loss", loss * self.trainer.world_size, 1.0 / len(chunks))
            metrics.add_masked("policy/entropy", entropy_NT, mask_NT)
            metrics.add("throughput/padding_efficiency", part.lengths_N.sum(), part.ids_NL.numel())
            metrics.add("throughput/train_tokens_per_s", part.lengths_N.sum(), 0)
        if not chunks:
            metrics.add("policy/loss", 0, 1)
            nothing = torch.stack([0.0 * parameter.sum() for parameter in self.policy.trainable_parameters()])
            self.manual_backward(nothing.sum())
        self._apply_gradient(optimizer, metrics, rows, rollouts)

    def _apply_gradient(
        self, optimizer: LightningOptimizer, metrics: StepMetrics, rows: Tensor, rollouts: list[Rollout] | None
    ) -> None:
        parameters = self.policy.trainable_parameters()
        limit = torch.inf if self.max_grad_norm is None else self.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        # Gradients are the same on all ranks by now, so all of them decide alike.
        if torch.isfinite(norm):
            optimizer.step()
            scheduler = self.lr_schedulers()
            if scheduler is not None:
                cast(torch.optim.lr_scheduler.LRScheduler, scheduler).step()
            metrics.add("optim/grad_norm", norm, 1)
            self._skipped_last = False
            return
        optimizer.zero_grad()
        self.skipped_steps += 1
        where = self._write_offenders([rollouts[row] for row in rows.tolist()] if rollouts else [])
        log.warning("the gradient's norm is %s: the step is skipped%s", norm.item(), where)
        if self._skipped_last:
            raise NonFiniteError(
                f"the gradient was not finite in two optimizer steps running{where}: lower the learning rate, or look "
                "for a completion with an extreme log-prob there"
            )
        self._skipped_last = True

    def _write_offenders(self, rollouts: list[Rollout]) -> str:
        if not rollouts:
            return ""
        folder = Path(self.trainer.default_root_dir) / "nonfinite"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"step-{self.trainer.global_step:06d}-rank{self.global_rank}-{self.skipped_steps}.jsonl"
        file.write_text("".join(json.dumps(record(rollout)) + "\n" for rollout in rollouts))
        return f" (its rollouts are in {file})"

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        if wanted or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def all_ranks_sum(self, *counts: float | Tensor) -> list[float]:
        """Sums over all ranks."""
        device = self.trainer.strategy.root_device
        stacked = torch.stack([torch.as_tensor(count, dtype=torch.float64, device=device) for count in counts])
        return cast(list[float], self.trainer.strategy.reduce(stacked, reduce_op="sum").tolist())

    def finish_step(self, metrics: StepMetrics) -> None:
        """Count a training step as done, and log its means, over its micro-batches and all ranks."""
        self.data.step_done()
        logged = metrics.reduce(self.trainer.strategy)
        logged["optim/lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        logged["optim/skipped_steps"] = float(self.skipped_steps)
        if any(verifier.unsafe for verifier in self.verifiers.values()):
            logged["reward/unsafe_sandbox"] = 1.0
        for name, value in logged.items():
            self.log(name, value, prog_bar=name in ("reward/mean", "reward/correct"), batch_size=1)

    @contextmanager
    def timed(self, metrics: StepMetrics, phase: str) -> Iterator[None]:
        """Log the seconds spent inside as ``time/<phase>_s``."""
        with self.phases(phase, self.device) as timed:
            yield
        metrics.add(f"time/{phase}_s", timed.seconds, 1)
        if phase == "update":
            metrics.add("throughput/train_tokens_per_s", 0, timed.seconds)

    # -- evaluation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        refinement = self.data.refinement
        refined = None
        if refinement is not None and refinement.val_feedback != "none":
            told = "gold_feedback" if refinement.val_feedback == "verdict" else "refinement"
            refined = f"accuracy_after_{told}"
        self._evaluation = Evaluation(self.data.pass_at_k, self.device, refined)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._evaluation.update(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        self._evaluation.update(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The completions of a batch with their verdicts, as plain records."""
        single = [record(rollout) | {"sampled_for": "accuracy"} for rollout in batch.single]
        return single + [record(rollout) | {"sampled_for": "pass@k"} for rollout in batch.sampled or []]

    def _log_evaluation(self, split: str) -> None:
        for name, value in self._evaluation.compute().items():
            self.log(f"{split}/{name}", value, prog_bar=name == "accuracy")

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: under LoRA a checkpoint does not hold the frozen base."""
        trained = self._trained_names()
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["reference"] = self.policy.reference_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
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
        self.skipped_steps = checkpoint["skipped_steps"]
        self.policy.load_reference_state(checkpoint.get("reference", {}))

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def _named(verifiers: list[Verifier]) -> dict[str, Verifier]:
    """Verifiers by the name of their class, numbered where it repeats, so that no two share a curve."""
    names: dict[str, Verifier] = {}
    for verifier in verifiers:
        name = type(verifier).__name__
        same = sum(type(other).__name__ == name for other in names.values())
        names[f"{name}{same + 1}" if same else name] = verifier
    return names
