"""Optimizers that keep less state, named by ``class_path``: what they train, resume and are planned with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.algorithms.optimization import Optimization
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.cli.sentences import sentence
from grpo_lightning.commands.plan.rehearsal import Rehearsal
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import RolloutDataModule, SamplingParams
from tests.tiny import save_tiny_model
from tests.toy import ToyTask, fit, grpo, needs_bitsandbytes, same

LARGE = {"hidden_size": 64, "intermediate_size": 128}
"""Weights of 4,096 elements and more, which bitsandbytes keeps in 8 bits."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("large"), "llama", **LARGE)


def make(name: str) -> Any:
    if name.startswith("torch"):
        return lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2)
    import bitsandbytes

    return lambda parameters: getattr(bitsandbytes.optim, name)(parameters, lr=1e-2)


NAMES = ["torch.optim.Adafactor", *(pytest.param(n, marks=needs_bitsandbytes) for n in ("AdamW8bit", "PagedAdamW8bit"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_repeats_the_uninterrupted_one(path: str, name: str, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, **options: Any) -> dict[str, torch.Tensor]:
        module = grpo(path, optimizer=make(name))
        return fit(folder, module, steps, callbacks=[RunCheckpoint()], enable_checkpointing=True, **options)

    whole = run(tmp_path / "whole", 3)
    part = run(tmp_path / "part", 2)
    resumed = run(tmp_path / "part", 3, ckpt_path=tmp_path / "part/checkpoints/last.ckpt")
    assert same(whole, resumed)
    assert not same(whole, part)


@pytest.mark.parametrize("name", NAMES)
def test_the_planned_state_is_that_of_a_run(path: str, name: str, tmp_path: Path) -> None:
    module = grpo(path, optimizer=make(name))
    fit(tmp_path, module, 2)
    (optimizer,) = module.trainer.optimizers
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    planned = _planned(path, name)
    # bitsandbytes makes two tables of 256 numbers before the rehearsal.
    tables = 0 if name.startswith("torch") else 2 * 256 * 4
    assert planned.meter.live["optimizer"] == sum(held.values()) - tables
    weights = sum(p.numel() for p in module.policy.trainable_parameters())
    assert sum(held.values()) < 4 * weights, "AdamW has 8 bytes per weight"


@needs_bitsandbytes
def test_pages_of_an_optimizer_are_planned_in_host_memory_on_a_gpu(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "llama", hidden_size=64, intermediate_size=2048)  # 131,072 in each of its weights
    rehearsals = [
        _planned(path, name, on_cuda)
        for name, on_cuda in (("PagedAdamW8bit", False), ("AdamW8bit", True), ("PagedAdamW8bit", True))
    ]
    here, plain, paged = (rehearsal.meter.live for rehearsal in rehearsals)
    assert here["optimizer"] == plain["optimizer"] == paged["optimizer"] + paged["host"]
    assert paged["host"] == 2 * 2 * 3 * 131_072  # two moments of three projections of two layers
    assert "host" not in plain


def test_an_optimizer_that_takes_gradients_before_they_are_clipped_is_refused() -> None:
    early = type("CPUOffloadOptimizer", (torch.optim.SGD,), {"__module__": "torchao.optim.cpu_offload"})
    with pytest.raises(ConfigError, match="CPUOffloadOptimizer copies each gradient during the backward pass"):
        Optimization(lambda parameters: early(parameters, lr=0.1), None).configure(
            [torch.nn.Parameter(torch.ones(1))], is_resumed=False
        )


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    told = (
        'Parser key "model.optimizer":\n  Type typing.Callable expects a function or a callable class: No module named '
        "'bitsandbytes'. Got value: Namespace(class_path='bitsandbytes.optim.AdamW8bit')"
    )
    wanted = "model.optimizer: bitsandbytes is not installed: pip install 'grpo-lightning[quantised]'"
    assert sentence(told, [], {}) == wanted


def _planned(path: str, name: str, on_cuda: bool = False) -> Rehearsal:
    module = grpo(path, optimizer=make(name))
    data = RolloutDataModule(ToyTask(), group_size=2, sampling=SamplingParams(max_new_tokens=4))
    return Rehearsal(module, data, module.policy_config, "32-true", on_cuda)
