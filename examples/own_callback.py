"""A callback of your own: a subclass of RunCallback, named by its class_path in own_callback.yaml.

grpo fit --config configs/quickstart.yaml --config examples/own_callback.yaml
"""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl

from grpo_lightning.rollout import RunCallback, StepEnd


class UnsolvedPrompts(RunCallback):
    """Appends every prompt that no first attempt solved to a file in the run directory, one file per rank.

    Args:
        name: start of the file's name.
    """

    def __init__(self, name: str = "unsolved") -> None:
        self.name = name

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        if end.experience is None:
            return  # a step that learned from demonstrations
        attempts, size = end.experience.first_attempts, end.experience.recipe.group_size
        with (Path(trainer.default_root_dir) / f"{self.name}-rank{trainer.global_rank}.jsonl").open("a") as file:
            for start in range(0, len(attempts), size):
                group = attempts[start : start + size]
                if not any(attempt.verdict.correct for attempt in group):
                    record = {
                        "step": end.step,
                        "prompt": group[0].prompt.messages[-1]["content"],
                        "correct in the step": end.metrics.get("reward/correct"),
                    }
                    file.write(json.dumps(record) + "\n")
