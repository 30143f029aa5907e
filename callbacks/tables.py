"""Rollouts of a step as a table of Weights & Biases or MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from grpo_lightning.types import verdict_kind

COLUMNS = (
    "id", "prompt", "completion", "verdict", "reward", "advantage", "finish_reason", "tokens", "answer", "feedback"
)  # fmt: skip


def log_tables(loggers: Iterable[Logger], step: int, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with the loggers that have tables; with others, do nothing.

    Args:
        loggers: those of the run.
        step: the training step.
        records: the rollouts, as they are stored.
    """
    rows = [_row(record) for record in records]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("rollouts", columns=list(COLUMNS), data=rows, step=step)
        elif isinstance(logger, MLFlowLogger):
            columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
            logger.experiment.log_table(logger.run_id, columns, f"rollouts/step-{step:06d}.json")


def _row(record: Mapping[str, Any]) -> list[Any]:
    shown = {
        "prompt": "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in record["prompt"]),
        "verdict": verdict_kind(record["correct"], record["format_valid"], record["error"]),
        "answer": None if record["answer"] is None else str(record["answer"]),
        "feedback": record["feedback"] if record["error"] is None else record["error"],
    }
    return [shown[name] if name in shown else record[name] for name in COLUMNS]
