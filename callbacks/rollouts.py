"""Every rollout of training and of an evaluation, in files of the run dir."""

from __future__ import annotations

import json
import logging
from itertools import count
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from grpo_lightning.algorithms import policy_module
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import EvaluationBatch, RunCallback, StepEnd
from grpo_lightning.rollout.experience import Purpose
from grpo_lightning.rollout.records import TokenCharacters, records
from grpo_lightning.rollout.resumed import drop_rollouts
from grpo_lightning.stored import whole_file

from .tables import log_tables

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
"""A JSONL file of this size is closed, and the next one started."""


class RolloutLogger(RunCallback):
    """Writes every rollout of ``fit``, ``test`` and ``validate`` into ``<run dir>/rollouts``, for ``grpo samples``.

    Each start of the run writes into a separate folder, named by its first step, such as ``002-from-step-000040``, and
    each rank into separate files. A resumed run first drops the rollouts of the steps that it makes again, so that each
    step is there once; to keep them, start from the checkpoint in a new ``--run_dir``. A record holds prompt,
    completion, verdict, reward, advantage, finish reason, attempt, and what the policy thought of its tokens. In
    ``test`` and ``validate`` the step is the number of the batch, and ``sampled_for`` says what the completion counts
    for. Where the run dir has rollouts already, as after ``trainer.fit`` with the same trainer, they are written into
    ``<run dir>/test/<n>/rollouts``, or ``validate`` likewise. Validation inside ``fit`` and dry runs are not written.

    Args:
        every_n_steps: write the rollouts of every this many training steps; those of an evaluation are all written.
        format: ``jsonl``, lines appended to a few files; or ``parquet``, one file per step.
        tokens: also write each token's id and log-prob (and its reference log-prob and advantage, if it has them). This
            takes most of the space.
        max_gib: when a rank's files hold more than this, its oldest are deleted; ``None`` keeps all.
        table_every_n_steps: with a ``WandbLogger`` or ``MLFlowLogger``, also log the step's rollouts of the first rank
            as a table, every this many training steps; 0 logs none.
        enabled: ``false`` writes nothing.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        format: Literal["jsonl", "parquet"] = "jsonl",
        tokens: bool = True,
        max_gib: float | None = 1.0,
        table_every_n_steps: int = 10,
        enabled: bool = True,
    ) -> None:
        if every_n_steps < 1:
            raise ConfigError(
                f"rollouts.every_n_steps: must be at least 1, not {every_n_steps}; rollouts.enabled=false writes none"
            )
        if max_gib is not None and max_gib <= 0:
            raise ConfigError(f"rollouts.max_gib: must be above 0, or null for no limit, not {max_gib}")
        if table_every_n_steps < 0:
            raise ConfigError(f"rollouts.table_every_n_steps: must be 0 (none) or more, not {table_every_n_steps}")
        self.every_n_steps = every_n_steps
        self.table_every_n_steps = table_every_n_steps
        self.format = format
        self.tokens = tokens
        self.max_bytes = None if max_gib is None else max_gib * 2**30
        self.enabled = enabled
        self.run_dir: Path | None = None
        """What ``grpo samples`` shows the rollouts of this start by; ``None`` where none has been written."""
        self._batches = 0
        self._folder: Path | None = None
        self._shard: Path | None = None
        self._characters: TokenCharacters | None = None
        self._deleted = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run_dir = self._folder = self._shard = None
        is_dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.training and trainer.ckpt_path is not None and trainer.is_global_zero and not is_dry:
            drop_rollouts(Path(trainer.default_root_dir) / "rollouts", self.data_module.steps_done)
        tokenizer = policy_module(pl_module, self).policy.tokenizer
        self._characters = TokenCharacters(tokenizer) if self.tokens else None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = 0
        self.on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if not self._writes(trainer) or end.experience is None:
            return
        if end.step % self.every_n_steps == 0:
            self._write(trainer, end.step, records(end.experience, self._characters))
        if self.table_every_n_steps and end.step % self.table_every_n_steps == 0 and trainer.is_global_zero:
            log_tables(trainer.loggers, end.step, records(end.experience))

    def on_evaluation_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, purpose: Purpose, batch: EvaluationBatch
    ) -> None:
        if trainer.state.fn == "fit" or not self._writes(trainer):
            return
        rows = [{"sampled_for": "accuracy"} | entry for entry in records(batch.single, self._characters)]
        if batch.sampled is not None:
            # The attempts for accuracy have the same places in the run.
            rows += [
                {"sampled_for": "pass@k"} | entry | {"id": f"pass@k/{entry['id']}", "group": f"pass@k/{entry['group']}"}
                for entry in records(batch.sampled, self._characters)
            ]
        self._write(trainer, self._batches, rows)
        self._batches += 1

    def _writes(self, trainer: pl.Trainer) -> bool:
        return self.enabled and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _write(self, trainer: pl.Trainer, step: int, records: list[dict[str, Any]]) -> None:
        if self._folder is None:
            self.run_dir, self._folder = trainer.strategy.broadcast(_new_folder(trainer, step))
            self._folder.mkdir(parents=True, exist_ok=True)
        place = {"step": step, "optimizer_step": trainer.global_step, "rank": trainer.global_rank}
        rows = [place | record for record in records]
        name = f"rank{trainer.global_rank}-step-{step:06d}.{self.format}"
        write = _write_parquet if self.format == "parquet" else self._append
        write(self._folder / name, rows)
        self._keep_to_limit(self._folder.parent, f"rank{trainer.global_rank}-")

    def _append(self, path: Path, records: list[dict[str, Any]]) -> None:
        limit = SHARD_BYTES if self.max_bytes is None else min(SHARD_BYTES, self.max_bytes / 8)
        if self._shard is None or self._shard.stat().st_size > limit:
            self._shard = path
        with self._shard.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)

    def _keep_to_limit(self, root: Path, prefix: str) -> None:
        if self.max_bytes is None:
            return
        files = sorted(root.glob(f"*/{prefix}*"))
        total = sum(file.stat().st_size for file in files)
        while total > self.max_bytes and len(files) > 1:
            total -= files[0].stat().st_size
            files.pop(0).unlink()
            if not self._deleted:
                self._deleted = True
                log.warning(
                    "the rollouts in %s take more than rollouts.max_gib=%g: the oldest are deleted from now on",
                    root, self.max_bytes / 2**30,
                )  # fmt: skip


def _new_folder(trainer: pl.Trainer, step: int) -> tuple[Path, Path]:
    """The run dir of the rollouts of this start, and the folder in it that they go into.

    An evaluation counts its steps from 0: beside the rollouts of training it would be read as a repeat of them.
    """
    run_dir, function = Path(trainer.default_root_dir), trainer.state.fn
    if function is not None and function != "fit" and (run_dir / "rollouts").exists():
        run_dir = next(path for n in count(1) if not (path := run_dir / function.value / str(n)).exists())
    root = run_dir / "rollouts"
    numbers = [int(folder.name.split("-")[0]) for folder in root.glob("[0-9]*-from-step-*")]
    return run_dir, root / f"{max(numbers, default=0) + 1:03d}-from-step-{step:06d}"


_AS_JSON = ("prompt", "answer", "metadata", "rewards_by_verifier", "info")


def _write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    whole, real, flag, text = pyarrow.int64(), pyarrow.float64(), pyarrow.bool_(), pyarrow.string()
    # Named here, for a column that is empty in one step must not change its type. What tasks and verifiers name
    # themselves is JSON in a string.
    types = {
        "step": whole, "optimizer_step": whole, "rank": whole, "id": text, "group": text, "attempt": whole,
        "parent": text, "prompt": text, "prompt_is_text": flag, "prompt_end": text, "completion": text,
        "answer": text, "metadata": text,
        "correct": flag, "format_valid": flag, "reward_alone": flag, "reward": real, "feedback": text, "error": text,
        "finish_reason": text, "tokens": whole, "rewards_by_verifier": text, "advantage": real, "learned": flag,
        "logprob_mean": real, "logprob_min": real, "kl": real, "info": text,
    }  # fmt: skip
    if "sampled_for" in records[0]:
        types["sampled_for"] = text
    if "token_ids" in records[0]:
        types |= {"token_ids": pyarrow.list_(whole), "token_characters": pyarrow.list_(whole)}
        kinds = ("token_logprobs", "token_reference_logprobs", "token_advantages")
        types |= {name: pyarrow.list_(pyarrow.float32()) for name in kinds}
    for record in records:
        record |= {name: json.dumps(record[name]) for name in _AS_JSON}
    table = pyarrow.Table.from_pylist(records, schema=pyarrow.schema(list(types.items())))
    with whole_file(path) as part:
        pyarrow.parquet.write_table(table, part, compression="zstd")
