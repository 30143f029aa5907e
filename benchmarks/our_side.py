"""GRPO steps of this library, run through its public objects, with the time and memory of each phase."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
"""Small enough that the optimizer does all of its work without changing the model."""


@dataclass
class Step:
    """Measurements of one step.

    Args:
        seconds: time by phase: ``rollout``, ``scoring``, ``old`` (log-probs of old policy and reference), ``update``
            (everything except rollout and scoring, so including ``old`` and bookkeeping) and ``step``.
        lengths: tokens per completion, including the end of sequence.
        prompt_tokens: prompt tokens per row.
        completions: token ids of the completions, one list per row.
        texts: prompts of the rows.
        loss: mean loss over the optimizer steps.
        gap: mean absolute difference of log-probs between sampling and training, in nats per token.
        peaks: peak memory by phase, in MiB above the loaded model.
        further: tokens per further attempt.
        conversations: tokens of the conversation before each further attempt.
    """

    seconds: dict[str, float]
    lengths: list[int]
    prompt_tokens: list[int]
    completions: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    loss: float = float("nan")
    gap: float = float("nan")
    peaks: dict[str, float] = field(default_factory=dict)
    further: list[int] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)

    @property
    def generated(self) -> int:
        """Number of generated tokens."""
        return sum(self.lengths)

    @property
    def trained(self) -> int:
        """Number of tokens in the rows that were trained on."""
        return sum(self.lengths) + sum(self.prompt_tokens)


class _Probe(pl.Callback):
    """Measures phases and the step."""

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
        self.gap = float(trainer.callback_metrics["policy/sampler_gap"])


class OurSide:
    """A module of this library that runs one step at a time.

    Args:
        shape: the shape of the model and the step.
        folder: folder of the model.
        device: device to run on.
        memory: measure memory instead of time.
        data_options: options of :class:`RolloutDataModule` that override those of the shape.
        without: shortcuts to switch off.
        module_options: options of :class:`GRPOModule` that override its defaults.
    """

    name = "ours"

    def __init__(
        self,
        shape: Shape,
        folder: Path | str,
        device: torch.device,
        memory: bool = False,
        data_options: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
        **module_options: Any,
    ) -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        self.shape, self.device = shape, device
        self._optimizer: torch.optim.Optimizer | None = None
        lora = None if shape.lora is None else LoRAConfig(r=shape.lora, alpha=2 * shape.lora)
        options: dict[str, Any] = {
            "optimizer": self._shared_optimizer,
            "beta": shape.beta,
            "verifiers": [TokenVerifier()],
        }
        self.module = GRPOModule(
            policy=PolicyConfig(path=str(folder), dtype=shape.dtype, lora=lora, without=list(without)),  # type: ignore[arg-type]
            updates_per_rollout=shape.updates,
            **options | module_options,
        )
        self.data_options = {"task": Letters(shape)} | dict(data_options or {})
        self.peak = Peak(device, memory)
        self.base = 0.0

    def _shared_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return the same optimizer in every step, so that its state is kept."""
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(parameters, lr=TINY_LR, weight_decay=0.0, fused=True)
        return self._optimizer

    def step(self, seed: int, **data_options: Any) -> Step:
        """Run one step.

        Args:
            seed: seed of the sampling.
            data_options: options of :class:`RolloutDataModule` for this step only; they override all others.
        """
        shape = self.shape
        data = RolloutDataModule(
            prompts_per_step=shape.prompts,
            group_size=shape.group_size,
            sampling=SamplingParams(temperature=shape.temperature, max_new_tokens=shape.cap),
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
            lengths=[len(attempt.completion.token_ids) for attempt in batch.first_attempts],
            prompt_tokens=prompt_lengths[:count],
            completions=[attempt.completion.token_ids for attempt in batch.first_attempts],
            texts=[attempt.prompt.messages[0]["content"] for attempt in batch.first_attempts],
            loss=probe.loss,
            gap=probe.gap,
            peaks=probe.peaks,
            further=batch.tokens.completion_lengths_N.tolist()[count:],
            conversations=prompt_lengths[count:],
        )


class _Base(pl.Callback):
    """Records the memory of the loaded model, before anything has run."""

    def __init__(self, side: OurSide) -> None:
        self.side = side

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.side.base:
            self.side.base = self.side.peak.held()
