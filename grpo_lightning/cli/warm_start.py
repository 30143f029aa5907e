"""The warm start: an SFT run inside the run dir, whose exported policy the run starts from."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.cli.checkpoints import run_of_checkpoint
from grpo_lightning.cli.launch import is_first_process
from grpo_lightning.errors import ConfigError
from grpo_lightning.shipped import shipped_config

log = logging.getLogger(__name__)


def start_from_warm_policy(config: Any, subcommand: str, run_dir: Path, run: Callable[[list[str]], Any]) -> None:
    """Replace ``model.policy.path`` by the policy of the warm start; ``fit`` trains it where it is missing.

    The first process trains it on one device, and the others wait: its steps are those of the SFT config run alone.

    Args:
        config: the run's config; changed here.
        subcommand: ``fit`` trains; the others evaluate what a run started from.
        run_dir: this run's directory.
        run: does what a command line says, given as a list.

    Raises:
        ConfigError: the SFT config is wrong, or the policy that the run started from is gone.
    """
    policy = run_dir / "warm_start" / "policy" if subcommand == "fit" else _policy_of_the_run(config.ckpt_path)
    if subcommand == "fit" and not policy.is_dir():
        _train(config, policy, run) if is_first_process() else _wait_for(policy)
    # The seed of the run, whether this process trained, waited, or neither.
    pl.seed_everything(config.seed_everything, workers=True, verbose=False)
    config.model.init_args.policy.path = str(policy)
    config.model.init_args.policy.init = "pretrained"
    config.warm_start = None


def _policy_of_the_run(checkpoint: str | None) -> Path:
    """The policy from which the run of a checkpoint started."""
    run = run_of_checkpoint(checkpoint) if checkpoint else None
    if run is None:
        raise ConfigError(
            "warm_start: only a run's checkpoint says which policy the run started from: give RUN/config.yaml as "
            "--config and RUN/checkpoints/last.ckpt as --ckpt_path, or --warm_start null to evaluate model.policy.path"
        )
    policy = run / "warm_start" / "policy"
    if not policy.is_dir():
        raise ConfigError(f"warm_start: {policy} does not exist: give --config {run / 'config.yaml'}")
    return policy


def _train(config: Any, policy: Path, run: Callable[[list[str]], Any]) -> None:
    if config.ckpt_path:
        raise ConfigError(
            f"warm_start: {policy}, which this run started from, is gone: name another policy in "
            "model.init_args.policy.path and set warm_start to null"
        )
    folder = policy.parent
    last = folder / "checkpoints" / "last.ckpt"
    resume = ["--ckpt_path", str(last)] if last.is_file() else []
    if not resume:
        # A warm start that was interrupted before its first checkpoint leaves nothing to continue from.
        shutil.rmtree(folder, ignore_errors=True)
    devices = config.trainer.devices
    device = f"[{devices[0]}]" if isinstance(devices, list) else "1"
    one_device = ["--trainer.devices", device, "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    options = ["--run_dir", str(folder), "--seed_everything", str(config.seed_everything), *one_device, *resume]
    try:
        run(["fit", "--config", shipped_config(config.warm_start), *options])
    except ConfigError as error:
        raise ConfigError(f"warm_start: in {config.warm_start}: {error}") from error


def _wait_for(policy: Path, poll_s: float = 0.5, remind_s: float = 60.0) -> None:
    """Wait until the first process has exported the policy. Where that fails, the launcher ends this process too.

    Args:
        policy: put in place by a rename, so it is whole once it is there.
        poll_s: seconds between looks.
        remind_s: seconds between lines in the log.
    """
    waited = 0.0
    while not policy.is_dir():
        time.sleep(poll_s)
        waited += poll_s
        if waited % remind_s < poll_s:
            log.info("waiting for the warm start of the first process to write %s", policy)
