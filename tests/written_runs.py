"""Run directories with chosen contents, written as runs write theirs: TensorBoard's own event files, YAML, JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

START = 1_700_000_000
ENVIRONMENT = {
    "command": ["grpo", "fit", "--config", "my config.yaml"],
    "device": "cpu: a processor, 2 cores",
    "versions": {"python": "3.11", "torch": "2.13.0"},
}


def write_run(
    folder: Path,
    seed: int = 1,
    module: str = "GRPOModule",
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    correct: str | None = None,
    data: Mapping[str, Any] | None = None,
    **init_args: Any,
) -> Path:
    """A run directory.

    Args:
        curves: ``(step, value)`` by name; of a validation, with the number of steps made before it.
        correct: the test results: ``"1"`` solved, ``"0"`` failed, ``"x"`` the verifier broke; ``None`` for no test.
        data: options of the data module.
        init_args: options of the module.
    """
    folder.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": 10, "default_root_dir": str(folder), "logger": {"save_dir": str(folder)}},
        "model": {"class_path": f"grpo_lightning.algorithms.{module}", "init_args": dict(init_args)},
        "data": {"group_size": 8} | dict(data or {}),
        "run_dir": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    with SummaryWriter(str(folder)) as writer:
        for name, points in ({"reward/mean": [(0, 0.5)]} if curves is None else curves).items():
            for step, value in points:
                # As Lightning does: an evaluation behind a step is logged at that step, a second after what it logged.
                evaluated = name.startswith("val/")
                logged = max(0, step - 1) if evaluated else step
                writer.add_scalar(name, value, logged, walltime=START + step + (0.5 if evaluated else 1))
    if correct is not None:
        write_test(folder / "test" / "first", correct)
    return folder


def write_test(folder: Path, correct: str, checkpoint: str = "checkpoints/last.ckpt") -> None:
    folder.mkdir(parents=True)
    solved = {"1": True, "0": False, "x": None}
    lines = [json.dumps({"problem": f"p{row}", "correct": solved[mark]}) for row, mark in enumerate(correct)]
    (folder / "test_results.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump({"ckpt_path": checkpoint}))
