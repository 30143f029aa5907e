"""Casts that autocast keeps from pass to pass: the same gradients as with a cast in every pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.speed.casts import cached_casts

ROWS = [token_rows([[1, 30, 40, row]] * 2, [[50, 51, 2], [60, 2]], pad=0) for row in (70, 80, 90)]


class Casts(TorchDispatchMode):
    """Counts casts of float32 matrices of a given shape to bfloat16."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.count += args[0].shape == self.shape
        return func(*args, **kwargs or {})


def gradients(policy: Policy, cached: bool) -> list[Tensor]:
    """The gradients of three passes, the first of them after one without gradients."""
    policy.zero_grad()
    # As Lightning does.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), cached_casts() if cached else nullcontext():
        with torch.no_grad():
            policy.logprobs(ROWS[0])
        for tokens in ROWS:
            policy.logprobs(tokens)[0].sum().backward()
    return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"lora": LoRAConfig(r=4)}])
def test_gradients_are_those_of_a_cast_in_every_pass(model_path: str, options: dict[str, Any]) -> None:
    policy = Policy(PolicyConfig(path=model_path, **options)).train()
    own, plain = gradients(policy, cached=True), gradients(policy, cached=False)
    assert len(own) == len(plain) == sum(parameter.requires_grad for parameter in policy.parameters())
    assert all(torch.equal(one, other) for one, other in zip(own, plain, strict=True))


def test_a_weight_is_cast_once_and_anew_after_it_has_changed(tiny_model: Callable[[str], str]) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    weight = policy.lm.model.layers[0].mlp.gate_proj.weight
    counts, found = [], []
    for cached in (False, True):
        with Casts(weight.shape) as casts:
            gradients(policy, cached)
        counts.append(casts.count)
    assert counts[0] == 4 * counts[1] > 0
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(2):
            with cached_casts():
                found.append(policy.logprobs(ROWS[0])[0].detach())
            with torch.no_grad():
                weight.neg_()
    assert not torch.equal(*found)
