"""A few completions as tensors, and every objective of the project and of the examples."""

from __future__ import annotations

import inspect

import torch

import examples.own_objective
from grpo_lightning.objectives import Objective, PolicyLossTerms


def subclasses(base: type) -> list[type]:
    """All that can be built, but for those that tests write."""
    found = [base, *(kind for child in base.__subclasses__() for kind in subclasses(child))]
    own = ("grpo_lightning.", "examples.")
    return [kind for kind in dict.fromkeys(found) if not inspect.isabstract(kind) and kind.__module__.startswith(own)]


# A new class is in this list when it is imported with its package: it need not be named here.
OBJECTIVES = subclasses(Objective)
assert examples.own_objective.SoftGate in OBJECTIVES


class Case:
    """Five sequences of up to six tokens, some with ratios beyond every clip, one without a token that counts."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal() -> torch.Tensor:
            return torch.randn(5, 6, generator=generator, dtype=torch.float64).to(dtype)

        self.logprobs = (-2 + normal() * 0.5).clamp(max=-0.01).requires_grad_()
        self.old = (self.logprobs.detach() + normal() * 0.5).clamp(max=-0.01)
        self.advantages = torch.tensor([1.5, -1.0, 0.5, -2.0, 1.0], dtype=dtype)
        lengths = torch.tensor([6, 4, 1, 3, 0])
        self.mask = torch.arange(6) < lengths[:, None]

    def terms(self, objective: Objective) -> PolicyLossTerms:
        return objective(self.logprobs, self.old, self.advantages, self.mask)

    def gradient(self, objective: Objective) -> torch.Tensor:
        return torch.autograd.grad(self.terms(objective).loss_NT.sum(), self.logprobs)[0]
