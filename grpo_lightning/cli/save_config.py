"""What a run writes about itself: its resolved config, and what it was made with."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from grpo_lightning.cli.confidential import remove_secrets
from grpo_lightning.cli.environment import environment
from grpo_lightning.cli.import_folders import record_of

log = logging.getLogger(__name__)


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config into the run dir, with what the run was made with beside it.

    A resumed run adds files and overwrites none: ``config-2.yaml`` and ``environment-2.json``. The config does not say
    where this run's files are: another run by the same config has a separate directory. Keys, tokens and passwords are
    null in it.

    Args:
        places: ``trainer.logger`` and ``trainer.default_root_dir`` as they were given.
        arguments: the command line of ``grpo``.
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
        secret = remove_secrets(config)
        if secret:
            log.info("%s is without %s: give them again where it is used", path, ", ".join(secret))
        # A secret may have to be a text; whoever uses the config is told.
        self.parser.save(config, path, skip_unset=False, overwrite=False, multifile=False, skip_validation=bool(secret))
        made_with = environment(trainer.strategy.root_device, trainer.world_size, self.arguments)
        record_of(path).write_text(json.dumps(made_with, indent=2) + "\n")
        self.already_saved = True
