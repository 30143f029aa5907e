"""A toy task that a random policy can learn from rewards within a few steps, and what tests need around it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.errors import RunError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, Recipe, RolloutDataModule, SamplingParams
from grpo_lightning.rollout.batch import experience_of
from grpo_lightning.rollout.engines.base import Engine, OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.tasks import Task
from grpo_lightning.tasks.base import Split
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Sample, Verdict
from grpo_lightning.verifiers import Verifier

# For tests that take the fixture ``model_path``, but need no run with each shape of model.
llama_alone = pytest.mark.parametrize("model_path", ["llama"], indirect=True)
"""The quickest."""
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e .[quantised]"
)
lfm2_alone = pytest.mark.parametrize("model_path", ["lfm2"], indirect=True)
"""It has attention too, and a convolution, which is easier to break."""


def half(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Half of the product. Whichever option is omitted, the values of the others still meet in every combination."""
    assert len(options) > 2, "of two options, each value of one would meet half of the other's"
    return [
        tuple(values[place] for values, place in zip(options, places, strict=True))
        for places in itertools.product(*(range(len(values)) for values in options))
        if sum(places) % 2 == 0
    ]


class ToyTask(Task):
    """Prompts of differing lengths; the answer is the letter that the completion should be full of."""

    def __init__(self, rows: int = 24, chat_template: str | None = None) -> None:
        super().__init__(chat_template=chat_template)
        self.rows = rows

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [
            Prompt(self.messages(f"{split} {'ab' * (row % 5)}{row}"), answer="e", solution="eeee")
            for row in range(self.rows)
        ]

    def gold_completion(self, prompt: Prompt) -> str:
        return str(prompt.answer) * 4


class Secrets(ToyTask):
    """The same, with a digit to guess."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [replace(prompt, answer=str(row % 10)) for row, prompt in enumerate(super().prompts(split))]


class LetterVerifier(Verifier):
    """The share of the answer letter among the bytes of the completion, so that nearly every group has a signal."""

    def __init__(self) -> None:
        super().__init__(accept_truncated=True)  # random weights seldom end

    def verify(self, sample: Sample) -> Verdict:
        count = sum(character < sample.answer for character in sample.completion)
        share = count / max(1, len(sample.completion))
        return Verdict(correct=share > 0.5, format_valid=count > 0, score=share)


class BrokenVerifier(Verifier):
    """Breaks on some completions."""

    def __init__(self, on: str = "a") -> None:
        super().__init__(accept_truncated=True)
        self.on = on

    def verify(self, sample: Sample) -> Verdict:
        if self.on in sample.completion:
            raise OSError("the checker is gone")
        return Verdict(correct=len(sample.completion) % 2 == 0, format_valid=True)


def sgd(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """With this, and without clipping, the change of the weights is minus the gradient."""
    return torch.optim.SGD(parameters, lr=1.0)


def scheduled_rates(schedule: Any, lr: float, steps: int) -> list[float]:
    """The learning rate of each step, by torch alone; ``schedule`` makes a schedule of an optimizer, ``None`` none."""
    alone = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = None if schedule is None else schedule(alone), []
    for _ in range(steps):
        rates.append(alone.param_groups[0]["lr"])
        alone.step()
        if scheduler is not None:
            scheduler.step()
    return rates


def adam(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)


def grpo(path: str, **options: Any) -> GRPOModule:
    keys = ("lora", "quantization", "reference", "gradient_checkpointing", "without")
    policy = {key: options.pop(key) for key in keys if key in options}
    options = {"verifiers": [LetterVerifier()], "beta": 0.0, "optimizer": adam} | options
    return GRPOModule(policy=PolicyConfig(path=path, **policy), **options)


def rollouts(**options: Any) -> RolloutDataModule:
    defaults = {
        "task": ToyTask(),
        "prompts_per_step": 3,
        "group_size": 4,
        "sampling": SamplingParams(max_new_tokens=16),
    }
    return RolloutDataModule(**defaults | {"seed": 1} | options)


def trainer(folder: Path, steps: int, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0, "check_val_every_n_epoch": None, "val_check_interval": 1000,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=str(folder), **defaults | options)


def fit(
    folder: Path, module: Any, steps: int, data: RolloutDataModule | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Train, and give the trained weights by name."""
    pl.seed_everything(0, verbose=False)
    ckpt_path = options.pop("ckpt_path", None)
    trainer(folder, steps, **options).fit(module, datamodule=data or rollouts(), ckpt_path=ckpt_path)
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


class CopyEngine(Engine):
    """Samples from a copy of the weights, as a server does, and notes what it is asked for."""

    remote = True

    def __init__(self) -> None:
        self.log: list[str] = []
        self.version = ""
        self.break_at: str | None = None

    def start(self, policy: Policy, longest_row: int) -> None:
        self.copy = copy.deepcopy(policy)
        self.inner = InProcessEngine()
        self.inner.start(self.copy, longest_row)

    def push(self, policy: Policy, version: str) -> None:
        self.copy.load_state_dict(policy.state_dict())
        self.log.append(f"push {version}")
        self.version = version

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        place = "ahead" if current_thread() is not main_thread() else "now"
        self.log.append(f"{place} {self.version}")
        if place == "ahead":
            self.wait()
        if self.break_at == self.version:
            raise RunError("the server is gone")
        completions = self.inner.generate(requests, sampling, on_finish)
        self.log.append("done")
        return completions

    def wait(self) -> None:
        """What makes it slow."""

    def stop(self) -> None:
        self.log.append("stop")


class Watch(pl.Callback):
    """Keeps every training batch and what was logged for it."""

    def __init__(self) -> None:
        self.batches: list[Experience] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def experience(rows: Sequence[tuple[float, FinishReason]], group_size: int = 2) -> Experience:
    """First attempts with these rewards (NaN: the verifier broke); the one of row ``n`` has ``n + 1`` tokens."""
    attempts = [
        Attempt(
            Prompt([]), [2], key=f"train/0/{row}", group=str(row // group_size),
            completion=Completion([1] * (row + 1), "", reason, [0.0] * (row + 1), [0.0] * (row + 1)),
            verdict=Verdict(reward == 1, True, error="gone" if math.isnan(reward) else None), reward=reward,
        )
        for row, (reward, reason) in enumerate(rows)
    ]  # fmt: skip
    recipe = Recipe("train", group_size, SamplingParams(max_new_tokens=9))
    return experience_of(attempts, recipe, {"rollout": 0.0, "verify": 0.0}, 0, torch.device("cpu"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
