"""Steps of GRPO by this library, driven through its public objects, with the time and memory of each phase."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from meters import Peak, now
from shapes import Letters, Shape, TokenVerifier

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.rollout import Experience, RolloutDataModule, SamplingParams

TINY_LR = 1e-9
"""The optimizer does all of its work, and the model that is compared stays what it was."""


@dataclass
class Step:
    """What one step took.

    Args:
        seconds: by phase: ``rollout``, ``scoring``, ``old`` (log-probs of old policy and reference), ``update`` (all
            that is neither rollout nor scoring, so ``old`` and bookkeeping too) and ``step``.
        lengths: tokens of each completion, the end of sequence included.
        prompt_tokens: of each row.
        completions: their token ids, one list a row.
        texts: their prompts.
        loss: the mean over the optimizer steps.
        peaks: MiB over the loaded model, by phase.
        further: tokens of each further attempt.
        conversations: tokens that each of them was trained under.
    """

    seconds: dict[str, float]
    lengths: list[int]
    prompt_tokens: list[int]
    completions: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    loss: float = float("nan")
    peaks: dict[str, float] = field(default_factory=dict)
    further: list[int] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)

    @property
    def generated(self) -> int:
        return sum(self.lengths)

    @property
    def trained(self) -> int:
        return sum(self.lengths) + sum(self.prompt_tokens)


class _Probe(pl.Callback):
    """Hears of phases, and of the end of the step."""

    def __init__(self, peak: Peak, base: float) -> None:
        self.peak, self.base = peak, base
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.batch: Experience | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.device = pl_module.policy.device
        self.started: dict[str, float] = {}
        pl_module.phases.listeners.append(self)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.phases.listeners.remove(self)

    def phase_started(self, name: str) -> None:
        self.peak.reset()
        self.started[name] = now(self.device)
        self.started.setdefault("step", self.started[name])

    def phase_ended(self, name: str) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + now(self.device) - self.started[name]
        self.peaks[name] = max(self.peaks.get(name, 0.0), self.peak.peak() - self.base)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Experience, batch_idx: int
    ) -> None:
        self.seconds["step"] = now(self.device) - self.started["step"]
        self.batch = batch
        self.loss = float(trainer.callback_metrics["policy/loss"])


class OurSide:
    """A module that makes one step at a time.

    Args:
        shape: what it runs.
        folder: of the model.
        device: to run on.
        memory: measure it, in place of time.
        data_options: of :class:`RolloutDataModule`, over those of the shape.
        module_options: of :class:`GRPOModule`, over the defaults that its users get.
    """

    name = "ours"

    def __init__(
        self,
        shape: Shape,
        folder: Path,
        device: torch.device,
        memory: bool = False,
        data_options: Mapping[str, Any] | None = None,
        **module_options: Any,
    ) -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        self.shape, self.device = shape, device
        self._optimizer: torch.optim.Optimizer | None = None
        lora = None if shape.lora is None else LoRAConfig(r=shape.lora, alpha=2 * shape.lora)
        options: dict[str, Any] = {"optimizer": self._one_optimizer, "beta": shape.beta, "verifiers": [TokenVerifier()]}
        self.module = GRPOModule(
            policy=PolicyConfig(path=str(folder), dtype=shape.dtype, lora=lora),  # type: ignore[arg-type]
            updates_per_rollout=shape.updates,
            **options | module_options,
        )
        self.data_options = {"task": Letters(shape)} | dict(data_options or {})
        self.peak = Peak(device, memory)
        self.base = 0.0

    def _one_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The same in every step, with its state."""
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(parameters, lr=TINY_LR, weight_decay=0.0, fused=True)
        return self._optimizer

    def step(self, seed: int, **data_options: Any) -> Step:
        """One step.

        Args:
            seed: of the sampling.
            data_options: of :class:`RolloutDataModule` for this step alone, over those that the side has.
        """
        shape = self.shape
        data = RolloutDataModule(
            prompts_per_step=shape.prompts,
            group_size=shape.group_size,
            sampling=SamplingParams(max_new_tokens=shape.cap),
            seed=seed,
            **self.data_options | data_options,
        )
        probe = _Probe(self.peak, self.base)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                default_root_dir=folder, max_steps=shape.updates, accelerator=self.device.type, devices=1,
                precision=shape.precision, logger=False, enable_progress_bar=False, enable_model_summary=False,
                enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[_Base(self), probe],
                check_val_every_n_epoch=None, val_check_interval=10**6,
            )  # fmt: skip
            trainer.fit(self.module, datamodule=data)
        return self._measured(probe)

    def _measured(self, probe: _Probe) -> Step:
        assert probe.batch is not None
        seconds = probe.seconds
        scoring = seconds["verify"]
        batch, count = probe.batch, probe.batch.first
        prompt_lengths = batch.tokens.prompt_lengths_N.tolist()
        return Step(
            seconds={
                "rollout": seconds["rollout"],
                "scoring": scoring,
                "old": seconds["reference"],
                "update": seconds["step"] - seconds["rollout"] - scoring,
                "step": seconds["step"],
            },
            lengths=[len(one.completion.token_ids) for one in batch.first_attempts],
            prompt_tokens=prompt_lengths[:count],
            completions=[one.completion.token_ids for one in batch.first_attempts],
            texts=[one.prompt.messages[0]["content"] for one in batch.first_attempts],
            loss=probe.loss,
            peaks=probe.peaks,
            further=batch.tokens.completion_lengths_N.tolist()[count:],
            conversations=prompt_lengths[count:],
        )


class _Base(pl.Callback):
    """Notes what the loaded model holds, before anything has run."""

    def __init__(self, side: OurSide) -> None:
        self.side = side

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.side.base:
            self.side.base = self.side.peak.held()
