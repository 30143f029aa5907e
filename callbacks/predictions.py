"""What ``predict`` samples and what ``test`` finds, as JSONL."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from grpo_lightning.rollout import EvaluationBatch, RunCallback
from grpo_lightning.rollout.experience import Outcome, Purpose
from grpo_lightning.types import FinishReason, Prompt


class PredictionWriter(RunCallback, BasePredictionWriter):
    """Writes what ``predict`` samples and what ``test`` finds into the run dir, batch by batch; one file per rank.

    A line of ``predict`` is a completion with its verdict. A line of ``test`` is the verdict on one problem, with a key
    that the problem has in every run: ``grpo compare`` pairs runs by it.

    Args:
        filename: where the first rank writes predictions; other ranks add their number before the suffix.
        test_filename: the same for the results of a test.
    """

    def __init__(self, filename: str = "predictions.jsonl", test_filename: str = "test_results.jsonl") -> None:
        super().__init__(write_interval="batch")
        self.filename = filename
        self.test_filename = test_filename

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        _write(self._path(trainer, self.filename), prediction, batch_idx == 0)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"completions with their verdicts: {self._path(trainer, self.filename)}")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove_other_ranks(trainer, self.test_filename)
        _write(self._path(trainer, self.test_filename), [], first=True)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove_other_ranks(trainer, self.filename)

    def on_evaluation_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, purpose: Purpose, batch: EvaluationBatch
    ) -> None:
        if purpose == "test":
            results = [
                problem_result(attempt.prompt, outcome)
                for attempt, outcome in zip(batch.single.first_attempts, batch.single.outcomes, strict=True)
            ]
            _write(self._path(trainer, self.test_filename), results, first=False)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"the verdict on every problem: {self._path(trainer, self.test_filename)}")

    def _remove_other_ranks(self, trainer: pl.Trainer, filename: str) -> None:
        """Remove files of ranks that this test does not have, which would be read as its own."""
        if trainer.is_global_zero:
            path = self._path(trainer, filename)
            for left in path.parent.glob(f"{path.stem}.rank*{path.suffix}"):
                left.unlink()
        trainer.strategy.barrier()

    def _path(self, trainer: pl.Trainer, filename: str) -> Path:
        path = Path(trainer.default_root_dir) / filename
        return path if trainer.is_global_zero else path.with_suffix(f".rank{trainer.global_rank}{path.suffix}")


def problem_result(prompt: Prompt, outcome: Outcome) -> dict[str, Any]:
    """What a test found on one problem; ``correct`` is null where a verifier or the environment broke."""
    verdict = outcome.verdict
    return {
        "problem": problem_key(prompt),
        "correct": verdict.correct if verdict.error is None else None,
        "format_valid": verdict.format_valid if verdict.error is None else None,
        "reward_alone": verdict.reward_alone,
        "reward": None if math.isnan(outcome.reward) else outcome.reward,
        "tokens": outcome.tokens,
        "finish_reason": str(FinishReason.LENGTH if outcome.is_truncated else FinishReason.STOP),
        "error": verdict.error,
    }


def problem_key(prompt: Prompt) -> str:
    """The same for the same messages, answer and metadata, on every machine."""
    text = json.dumps([prompt.messages, prompt.answer, dict(prompt.metadata)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _write(path: Path, records: Iterable[Mapping[str, Any]], first: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if first else "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
