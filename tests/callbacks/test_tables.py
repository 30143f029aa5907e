"""Rollouts as tables of W&B and MLflow: what is in them, and that their loggers write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

from grpo_lightning.callbacks import RolloutLogger
from grpo_lightning.callbacks.tables import COLUMNS, log_tables
from grpo_lightning.errors import ConfigError
from tests.commands.test_samples import row
from tests.toy import fit, grpo


class Tables(WandbLogger):
    """Keeps the tables, where the original would need wandb."""

    save_dir = name = version = experiment = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.tables: list[tuple[Any, ...]] = []

    def log_table(self, key: str, columns: Any = None, data: Any = None, *_: Any, step: Any = None) -> None:
        self.tables.append((key, step, columns, data))

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_graph(self, *_: Any, **__: Any) -> None: ...

    def finalize(self, status: str) -> None: ...


def test_a_table_says_what_was_asked_sampled_and_judged(tmp_path: Path) -> None:
    logger = Tables()
    records = [
        row(3, text="42", correct=True, reward=1.0, advantage=0.5),
        row(3, member=1, format_valid=True),
        row(3, member=2, error="it broke", reward=None),
    ]
    log_tables([CSVLogger(tmp_path), logger], 3, records)
    ((key, step, columns, data),) = logger.tables
    assert (key, step, columns) == ("rollouts", 3, list(COLUMNS))
    first, second, third = (dict(zip(columns, values, strict=True)) for values in data)
    assert first == {
        "id": "train/3/0/0", "prompt": "user: prompt 3.0", "completion": "42", "verdict": "correct", "reward": 1.0,
        "advantage": 0.5, "finish_reason": "stop", "tokens": 1, "answer": "4", "feedback": "",
    }  # fmt: skip
    assert second["verdict"] == "format only"
    assert (third["verdict"], third["feedback"], third["reward"]) == ("error", "it broke", None)


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2]), (0, [])])
def test_every_so_many_steps(every: int, steps: list[int], tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    logger = Tables()
    rollouts = RolloutLogger(table_every_n_steps=every, every_n_steps=3)
    fit(tmp_path, grpo(tiny_model("llama")), 3, callbacks=[rollouts], logger=logger)
    assert [step for _, step, _, _ in logger.tables] == steps


def test_an_option_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollouts\.table_every_n_steps: must be 0 \(none\) or more, not -1"):
        RolloutLogger(table_every_n_steps=-1)


def test_wandb_writes_the_table(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_tables([logger], 3, [row(3), row(3, member=1)])
    logger.experiment.finish()
    (file,) = tmp_path.rglob("rollouts_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS)
    assert len(table["data"]) == 2


def test_mlflow_writes_the_table(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=str(tmp_path / "artifacts"))
    log_tables([logger], 3, [row(3), row(3, member=1)])
    (file,) = tmp_path.rglob("step-000003.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS)
    assert len(table["data"]) == 2
