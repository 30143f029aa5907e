"""What a run writes of itself: its resolved config, what it was made with, and where its loggers write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from grpo_lightning.cli.environment import environment


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config into the run dir, with what the run was made with beside it.

    A resumed run's go beside the first, not over them: ``config-2.yaml`` and ``environment-2.json``. Where this run's
    files lie is left out: another run by the same config has a directory of its own.

    Args:
        places: ``trainer.logger`` and ``trainer.default_root_dir`` as they were given.
        arguments: of ``grpo``.
    """

    def __init__(
        self, *args: Any, places: tuple[Any, Any] = (None, None), arguments: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.places = places
        self.arguments = arguments

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        names = ["config.yaml", *(f"config-{n}.yaml" for n in range(2, 10_000))]
        path = next(folder / name for name in names if not (folder / name).exists())
        config: Any = self.config.clone()
        config.run_dir = None
        config.trainer.logger, config.trainer.default_root_dir = self.places
        self.parser.save(config, path, skip_none=False, overwrite=False, multifile=False)
        made_with = environment(trainer.strategy.root_device, trainer.world_size, self.arguments)
        record = folder / path.name.replace("config", "environment").replace(".yaml", ".json")
        record.write_text(json.dumps(made_with, indent=2) + "\n")
        self.already_saved = True


def into_run_dir(loggers: Any, run_dir: Path) -> None:
    """Put the files of a logger with ``save_dir: .`` (which is W&B's default) into the run dir."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = getattr(logger, "init_args", None)
        if options is not None and str(options.get("save_dir")) == ".":
            options.save_dir = str(run_dir)


def tensorboard(run_dir: Path) -> Any:
    """The config of the logger that a run has if none is asked for."""
    return Namespace(
        class_path=f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__qualname__}",
        init_args=Namespace(save_dir=str(run_dir), name="", version="", default_hp_metric=False),
    )
