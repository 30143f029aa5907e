"""How often each prompt has been solved: kept over a run, in its checkpoints, and as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.events import RunCallback, StepEnd
from grpo_lightning.rollout.sampling import row_seed
from grpo_lightning.stored import read_jsonl, whole_file
from grpo_lightning.types import Attempt, Prompt

FILE = "pass_rates.jsonl"
"""The file in a run directory."""

Counts = Mapping[int, tuple[int, int]]
"""Passes and attempts by the id of a prompt."""


def prompt_id(prompt: Prompt) -> int:
    """What identifies a prompt in any order of its rows: the messages and the gold answer of its row."""
    prompt = prompt.row or prompt
    return row_seed(json.dumps(prompt.messages, sort_keys=True, default=str), repr(prompt.answer))


def count(attempts: Iterable[Attempt]) -> dict[int, tuple[int, int]]:
    """Passes and attempts by prompt. A pass is a correct completion; where a verifier broke, there was no attempt."""
    counts: dict[int, tuple[int, int]] = {}
    for attempt in attempts:
        if attempt.verdict.error is None:
            prompt = prompt_id(attempt.prompt)
            passes, made = counts.get(prompt, (0, 0))
            counts[prompt] = passes + attempt.verdict.correct, made + 1
    return counts


class PassRates:
    """Passes and attempts of each prompt at its last visit, and when that was.

    Older visits are of another policy, and are dropped.

    Args:
        prompts: the rows. Equal ones share their counts.
        file: what to start from, see :meth:`read`; ``None``: nothing.
    """

    def __init__(self, prompts: Sequence[Prompt], file: str | None = None) -> None:
        ids = [prompt_id(prompt) for prompt in prompts]
        self._place = {prompt: place for place, prompt in enumerate(dict.fromkeys(ids))}
        self._texts = dict(zip(ids, (prompt.messages[-1]["content"] for prompt in prompts), strict=True))
        self._place_of_N = torch.tensor([self._place[prompt] for prompt in ids])
        count = len(self._place)
        self._passes_K = torch.zeros(count, dtype=torch.long)
        self._attempts_K = torch.zeros(count, dtype=torch.long)
        self._step_K = torch.zeros(count, dtype=torch.long)
        if file is not None:
            self.read(file)

    @property
    def passes_N(self) -> torch.Tensor:
        return self._passes_K[self._place_of_N]

    @property
    def attempts_N(self) -> torch.Tensor:
        """Attempts by row; 0 for a prompt that has not been visited."""
        return self._attempts_K[self._place_of_N]

    @property
    def step_N(self) -> torch.Tensor:
        """The step of each row's last visit."""
        return self._step_K[self._place_of_N]

    def see(self, counts: Counts, step: int) -> None:
        """Take the visits of a step. Prompts that are not among the rows are ignored."""
        for prompt, (passes, attempts) in counts.items():
            place = self._place.get(prompt)
            if place is not None:
                self._passes_K[place], self._attempts_K[place], self._step_K[place] = passes, attempts, step

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the prompts that have been visited."""
        seen = self._attempts_K > 0
        return {
            "id": torch.tensor(list(self._place))[seen],
            "passes": self._passes_K[seen],
            "attempts": self._attempts_K[seen],
            "step": self._step_K[seen],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a :meth:`state`, for prompts that are still rows."""
        columns = (state[name].tolist() for name in ("id", "passes", "attempts", "step"))
        for prompt, passes, attempts, step in zip(*columns, strict=True):
            self.see({prompt: (passes, attempts)}, step)

    def records(self) -> Iterator[dict[str, Any]]:
        """The prompts that have been visited, in the order of the rows."""
        columns = (column_K.tolist() for column_K in (self._passes_K, self._attempts_K, self._step_K))
        for prompt, passes, attempts, step in zip(self._place, *columns, strict=True):
            if attempts:
                yield {
                    "id": f"{prompt:016x}",
                    "passes": passes,
                    "attempts": attempts,
                    "pass_rate": round(passes / attempts, 4),
                    "step": step,
                    "prompt": self._texts[prompt],
                }

    def write(self, file: Path) -> None:
        """Write one JSON object per line."""
        text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in self.records())
        with whole_file(file) as part:
            part.write_text(text, "utf-8")

    def read(self, file: str) -> None:
        """Take the visits of a file that :meth:`write` made, in this run or another, as if made at step 0.

        Raises:
            ConfigError: it cannot be read, or has none of the prompts.
        """
        key = "data.curriculum.init_args.pass_rates"
        try:
            rows = (row for _, row in read_jsonl(Path(file)))
            counts = {int(row["id"], 16): (int(row["passes"]), int(row["attempts"])) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{key}: cannot read {file} ({type(error).__name__}: {error}): give a file that grpo check "
                "--pass-rates or a run has written"
            ) from error
        if not counts.keys() & self._place.keys():
            raise ConfigError(
                f"{key}: none of the {len(counts)} prompts of {file} is a row of the train split: measure them again, "
                "with grpo check --pass-rates and this task"
            )
        self.see(counts, 0)


class PassRateKeeper(RunCallback):
    """Counts the visits of every step, of all ranks, and writes the file whenever a checkpoint is saved.

    Args:
        rates: are kept up to date.
    """

    def __init__(self, rates: PassRates) -> None:
        self.rates = rates

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if end.experience is None:
            return
        shares: list[Any] = [count(end.experience.sampled)]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            dist.all_gather_object(shares, count(end.experience.sampled))
        total: dict[int, tuple[int, int]] = {}
        for share in shares:
            for prompt, (passes, attempts) in share.items():
                before = total.get(prompt, (0, 0))
                total[prompt] = before[0] + passes, before[1] + attempts
        self.rates.see(total, end.step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.rates.write(Path(trainer.default_root_dir) / FILE)
