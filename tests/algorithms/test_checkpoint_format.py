"""Checkpoints name their format; those from before there was a number are read, those of a later one refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grpo_lightning.algorithms.checkpoint import CHECKPOINT_FORMAT
from grpo_lightning.errors import ConfigError
from tests.toy import fit, grpo, rollouts, same, trainer


@pytest.mark.parametrize("number", [None, CHECKPOINT_FORMAT, CHECKPOINT_FORMAT + 1])
def test_older_formats_are_read_and_newer_ones_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, number: int | None
) -> None:
    module, path = grpo(tiny_model("llama")), tmp_path / "one.ckpt"
    runner = trainer(tmp_path, 1)
    runner.fit(module, datamodule=rollouts())
    runner.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.pop("format") == CHECKPOINT_FORMAT
    torch.save(checkpoint | ({} if number is None else {"format": number}), path)
    resumed = grpo(tiny_model("llama"))
    if number == CHECKPOINT_FORMAT + 1:
        with pytest.raises(ConfigError, match=f"has format {number}, and this version reads formats up to"):
            fit(tmp_path, resumed, 1, ckpt_path=path)
        return
    weights = fit(tmp_path, resumed, 1, ckpt_path=path)
    assert same(weights, {name: p.detach() for name, p in module.named_parameters() if p.requires_grad})
