"""An optimizer whose state is sharded over ranks: the weights and checkpoints of one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.algorithms import GRPOModule, PPOModule
from grpo_lightning.algorithms.sharded import ShardedOptimizer, heaviest_share
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.commands.plan.rehearsal import Rehearsal
from grpo_lightning.models import PolicyConfig
from tests.toy import LetterVerifier, adam, grpo, rollouts, same, trainer

Checkpoint = dict[str, Any]


class CheckShares(pl.Callback):
    """Compares what each rank keeps with the whole; a rank that fails here fails the test."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, ShardedOptimizer)
        assert not optimizer.state
        kept = set(optimizer.optim.state)
        share = optimizer._partition_parameters()[trainer.global_rank]
        assert kept == {parameter for group in share for parameter in group["params"]}
        sizes = [
            sum(parameter.numel() for group in groups for parameter in group["params"])
            for groups in optimizer._partition_parameters()
        ]
        assert sum(
            parameter.numel() for parameter in heaviest_share(optimizer.param_groups, trainer.world_size)
        ) == max(sizes)
        assert max(sizes) < 0.6 * sum(sizes)


def scheduled(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)


def module_of(kind: str, path: str, **options: Any) -> Any:
    if kind == "grpo":
        return grpo(path, lr_scheduler=scheduled, **options)
    return PPOModule(
        policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, value_lr=3e-3, **options
    )


def run(kind: str, path: str, folder: Path, steps: int, shard: bool, ranks: int, resumed: Path | None) -> Checkpoint:
    """The last checkpoint of a run over some ranks."""
    pl.seed_everything(0, verbose=False)
    parallel: dict[str, Any] = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    checks = [CheckShares()] if shard and ranks > 1 else []
    trainer(
        folder, steps, callbacks=[*checks, RunCheckpoint(every_n_train_steps=1)], enable_checkpointing=True, **parallel
    ).fit(module_of(kind, path, shard_optimizer=shard), datamodule=rollouts(), ckpt_path=resumed)
    return dict(torch.load(folder / "checkpoints/last.ckpt", weights_only=True))


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether weights, optimizer and schedule are the same, bit for bit."""
    (left,), (right,) = one["optimizer_states"], other["optimizer_states"]
    assert left["state"].keys() == right["state"].keys()
    assert left["param_groups"] == right["param_groups"]
    assert one["lr_schedulers"] == other["lr_schedulers"]
    states = all(same(state, right["state"][index]) for index, state in left["state"].items())
    return states and same(one["state_dict"], other["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_sharded_optimizer_makes_the_same_weights_and_checkpoints_on_any_number_of_ranks(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    path, first = tiny_model("llama"), tmp_path / "sharded/checkpoints/last.ckpt"
    plain = run(kind, path, tmp_path / "plain", 2, False, 2, None)
    sharded = run(kind, path, tmp_path / "sharded", 2, True, 2, None)
    assert equal(plain, sharded)
    whole = run(kind, path, tmp_path / "whole", 4, False, 2, None)
    assert not same(whole["state_dict"], plain["state_dict"])
    for shard in (True, False):
        assert equal(whole, run(kind, path, tmp_path / f"again-{shard}", 4, shard, 2, first))
    # On another number of ranks sums are rounded otherwise; what is resumed is the same.
    one = run(kind, path, tmp_path / "one", 4, True, 1, first)
    assert equal(one, run(kind, path, tmp_path / "two", 4, False, 1, tmp_path / "plain/checkpoints/last.ckpt"))
    three = run(kind, path, tmp_path / "three", 4, True, 3, first) if kind == "grpo" else one
    assert three["global_step"] == 4


def test_one_process_has_nothing_to_shard(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    plain = run("grpo", tiny_model("llama"), tmp_path / "plain", 1, False, 1, None)
    assert equal(plain, run("grpo", tiny_model("llama"), tmp_path / "sharded", 1, True, 1, None))


def test_the_heaviest_share_is_dealt_out_by_size() -> None:
    sizes = [[3, 9, 5], [8, 1]]
    groups = [{"params": [torch.zeros(size) for size in group]} for group in sizes]
    # By hand, of two ranks: 9 | 5, 3; the 8 goes to the rank with 8, then 1 to that with 9: 10 | 16.
    assert [len(parameter) for parameter in heaviest_share(groups, 2)] == [5, 3, 8]
    assert len(heaviest_share(groups, 1)) == 5
    assert [len(parameter) for parameter in heaviest_share(groups, 9)] == [9]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_plan_has_the_state_of_one_share(tiny_model: Callable[[str], str], devices: int) -> None:
    def rehearsal(shard: bool) -> Rehearsal:
        module: GRPOModule = grpo(tiny_model("llama"), shard_optimizer=shard)
        return Rehearsal(module, rollouts(), module.policy_config, "32-true", on_cuda=False, devices=devices)

    plain, sharded = rehearsal(False), rehearsal(True)
    weights = sharded.optimizer.param_groups[0]["params"]
    share = heaviest_share([{"params": weights}], devices)
    # Two moments per element, and a step count of 4 bytes per tensor.
    assert sharded.meter.live["optimizer"] == sum(2 * weight.nbytes + 4 for weight in share)
    assert plain.meter.live["optimizer"] == sum(2 * weight.nbytes + 4 for weight in weights)
    assert all(weight.grad is None for weight in weights)
    batch = sharded.longest_batch(1, 8, 4)
    assert {phase.name for phase in sharded.step(batch)} == {phase.name for phase in plain.step(batch)}
