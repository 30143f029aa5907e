"""Cost: the price of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.callbacks import Cost, RunCheckpoint
from grpo_lightning.errors import ConfigError
from tests.toy import Watch, fit, grpo, llama_alone


@llama_alone
def test_the_cost_is_the_time_at_a_price_and_goes_on_after_a_resume(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    run: dict[str, Any] = {
        "callbacks": [Cost(price_per_hour=7.2), RunCheckpoint(), watch],
        "enable_checkpointing": True,
    }
    fit(tmp_path, grpo(model_path), 2, **run)
    fit(tmp_path, grpo(model_path), 3, ckpt_path=tmp_path / "checkpoints/last.ckpt", **run)
    costs = [logged["total/usd"] for logged in watch.logged]
    assert costs == pytest.approx([logged["total/wall_s"] * 0.002 for logged in watch.logged])
    assert 0 < costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("price", [0, -1.0, float("nan"), float("inf")])
def test_a_price_is_a_positive_number(price: float) -> None:
    with pytest.raises(ConfigError, match=r"Cost\.price_per_hour: must be a number of USD above 0"):
        Cost(price)
