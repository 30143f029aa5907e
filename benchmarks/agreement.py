"""Check that both sides agree: loss and gradients of two optimizer steps on one rollout, with KL and clipping."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from our_side import OurSide
from shapes import SHAPES, Shape, build, smoke, texts
from torch import Tensor

LR = 0.3
"""Large, so that the second step has ratios away from 1 and a KL away from 0."""


class _Recording(torch.optim.SGD):
    """SGD that records the gradient of every step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(parameters, lr=LR)
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        self.gradients.append(torch.cat([gradient.detach().float().flatten().cpu() for gradient in gradients]))
        super().step(closure)


@dataclass(frozen=True)
class Agreement:
    """Both sides' losses (the mean of the two steps) and the relative difference of each step's gradient."""

    losses: tuple[float, float]
    gradient_errors: list[float]


def compare(shape: Shape, folder: Path, device: torch.device) -> Agreement:
    """Train both sides on one rollout of ours."""
    from trl_side import TRLSide

    shape = replace(shape, updates=2, beta=0.04, lora=None)
    build(shape, folder)
    optimizers: list[_Recording] = []

    def make(parameters: Iterable[torch.nn.Parameter]) -> _Recording:
        optimizers.append(_Recording(parameters))
        return optimizers[-1]

    ours = OurSide(shape, folder, device, optimizer=make, max_grad_norm=None)
    step = ours.step(1)
    completions: dict[str, list[list[int]]] = {}
    for text, ids in zip(step.texts, step.completions, strict=True):
        completions.setdefault(text, []).append(ids)
    assert set(completions) == set(texts(shape))

    def replay(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        remaining = {text: list(ids) for text, ids in completions.items()}
        rows = [remaining[prompt[0]["content"]].pop(0) for prompt in prompts]
        tokenizer = trainer.processing_class
        encoded = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
        return {"prompt_ids": encoded, "completion_ids": rows, "logprobs": [[0.0] * len(ids) for ids in rows]}

    trl = TRLSide(shape, folder, device, shape.rows // 2, optimizer=make, rollout_func=replay, max_grad_norm=0.0)
    trl.run(lambda _: step.lengths, lambda *_: None)
    mine, theirs = (optimizer.gradients for optimizer in optimizers)
    assert len(mine) == len(theirs) == 2
    return Agreement(
        losses=(step.loss, float(sum(trl.losses)) / 2),
        gradient_errors=[float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)],
    )


def agreement(device: torch.device) -> list[str]:
    """Check every kind of model, and return one line for each.

    Raises:
        AssertionError: the sides do not agree.
    """
    lines = []
    for name in ("tiny", "small"):
        with tempfile.TemporaryDirectory() as folder:
            result = compare(smoke(SHAPES[name]), Path(folder) / "model", device)
        errors = ", ".join(f"{error:.1e}" for error in result.gradient_errors)
        lines.append(
            f"Same batch, {SHAPES[name].kind}: mean loss of two optimizer steps {result.losses[0]:.6f} and "
            f"{result.losses[1]:.6f}; relative difference of the gradients {errors}."
        )
        assert max(result.gradient_errors) < 1e-4, lines[-1]
        assert abs(result.losses[0] - result.losses[1]) < 1e-6, lines[-1]
    return lines
