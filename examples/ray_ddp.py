"""Training on a Ray cluster: Ray starts the processes, in each of which ``grpo fit`` runs as it is.

    python examples/ray_ddp.py WORKERS --config configs/quickstart.yaml [--KEY VALUE ...]

The run directory must be on a file system that all nodes of the cluster see.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

OF_RAY = [
    "--trainer.strategy", "{class_path: ray.train.lightning.RayDDPStrategy}",
    "--trainer.plugins", "[{class_path: ray.train.lightning.RayLightningEnvironment}]",
    "--trainer.devices", "auto",
]  # fmt: skip


def train(config: dict[str, Any]) -> None:
    """What every process does. Module, data, callbacks and run directory are those of ``grpo fit``."""
    from grpo_lightning.cli.grpo_cli import run

    os.chdir(config["folder"])  # relative paths mean what they meant where the run was started
    run(["fit", *config["arguments"], *OF_RAY])


def fit(workers: int, arguments: list[str]) -> None:
    """Run ``grpo fit`` with these arguments in one process per worker, with a GPU each where this machine has one."""
    TorchTrainer(
        train,
        train_loop_config={"arguments": arguments, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
    ).fit()


if __name__ == "__main__":
    fit(int(sys.argv[1]), sys.argv[2:])
