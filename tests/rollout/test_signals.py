"""SIGTERM and Ctrl-C in runs of two processes: both end between the same steps, and a checkpoint is there."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.rollout.signals import EndTogether
from tests.processes import forked
from tests.toy import grpo, rollouts, trainer

CASES = {
    "SIGTERM": ([signal.SIGTERM], [1], False),
    "Ctrl-C": ([signal.SIGINT], [1], True),
    "Ctrl-C twice": ([signal.SIGINT, signal.SIGINT], [0, 1], True),
}
"""The signals, the processes that they go to, and whether the optimizer is sharded: saving its state takes both."""


class SendInUpdate(pl.Callback):
    """Sends signals in the middle of the second update."""

    def __init__(self, numbers: list[signal.Signals], ranks: list[int]) -> None:
        self.numbers = numbers
        self.ranks = ranks

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 1 and trainer.global_rank in self.ranks:
            for number in self.numbers:
                signal.raise_signal(number)  # to this very thread, so that the second is not lost in the first


def _interrupted(rank: int, port: int, path: str, folder: Path, case: str) -> None:
    """One process of a run that is sent signals."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    numbers, ranks, shard = CASES[case]
    pl.seed_everything(0, verbose=False)
    callbacks = [SendInUpdate(numbers, ranks), RunCheckpoint()]
    run = trainer(folder, 9, callbacks=callbacks, enable_checkpointing=True, devices=2, strategy="ddp")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run.fit(grpo(path, shard_optimizer=shard), datamodule=rollouts())
    assert signal.getsignal(signal.SIGINT) is before
    assert "_sigterm_notifier_fn" not in vars(run._signal_connector), "a test or validation after it is Lightning's"
    EndTogether().setup(run, run.lightning_module, "test")
    assert "_sigterm_notifier_fn" not in vars(run._signal_connector)


@pytest.mark.parametrize(("case", "saved"), [("SIGTERM", 2), ("Ctrl-C", 2), ("Ctrl-C twice", None)])
def test_a_signal_ends_both_processes_after_the_step_and_a_second_ctrl_c_at_once(
    tiny_model: Callable[[str], str], tmp_path: Path, case: str, saved: int | None
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = forked(_interrupted, [(rank, port, tiny_model("llama"), tmp_path, case) for rank in (0, 1)])
    last = tmp_path / "checkpoints/last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.is_file() else None) == saved
    hint = f"interrupted at step 2: continue with the same config and --ckpt_path {last}"
    assert [hint in text for text in said] == [saved is not None, False]
