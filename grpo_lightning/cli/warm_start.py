"""The warm start: an SFT run inside the run dir, whose exported policy the run starts from."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from grpo_lightning.cli.checkpoints import run_of_checkpoint
from grpo_lightning.cli.finished_warm_starts import MADE_WITH, fingerprint, finished, take
from grpo_lightning.cli.launch import agreed, is_first_process, is_launched
from grpo_lightning.errors import ConfigError
from grpo_lightning.shipped import shipped_config

log = logging.getLogger(__name__)

REMIND_S = 60.0
"""Seconds between lines in the log while waiting."""


@dataclass(frozen=True)
class CommandLine:
    """What the warm start needs of the command line.

    Args:
        run: does what a command line says, given as a list.
        resolved: the config of a command line, with every default.
        check: checks the config and the data of the run that comes after, given the policy of the warm start's config.
    """

    run: Callable[[list[str]], Any]
    resolved: Callable[[list[str]], Mapping[str, Any]]
    check: Callable[[str], None]


def start_from(config: Any, policy: Path) -> None:
    """Replace ``model.policy.path`` of a config by the policy of a warm start."""
    # The seed of the run, whether this process trained, waited, or neither.
    pl.seed_everything(config.seed_everything, workers=True, verbose=False)
    config.model.init_args.policy.path = str(policy)
    config.model.init_args.policy.init = "pretrained"
    config.warm_start = None


def warm_policy(config: Any, run_dir: Path, root: Path, command_line: CommandLine) -> Path:
    """The policy that ``fit`` starts from: of this run, of an earlier one with the same warm start, or trained now.

    The first process trains it on one device, and the others wait: its steps are those of the SFT config run alone.

    Args:
        config: the run's config.
        run_dir: this run's directory.
        root: the directory of all runs.
        command_line: parses and runs the config of the warm start.

    Raises:
        ConfigError: the SFT config is wrong, or the run's own, or the policy that the run started from is gone.
    """
    policy = run_dir / "warm_start" / "policy"
    if policy.is_dir():
        return policy
    failed = None
    if is_launched():
        # Named anew in each start: one of an earlier start may lie there.
        failed = run_dir / f"warm_start_failed-{agreed(lambda known: known or secrets.token_hex(4))}"
    if not is_first_process():
        _wait_for(policy, failed)
        return policy
    try:
        return _trained(config, policy, root, command_line)
    except BaseException:
        if failed is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            failed.touch()
        raise


def _trained(config: Any, policy: Path, root: Path, command_line: CommandLine) -> Path:
    """Train the warm start, or take that of another run, in this process."""
    if config.ckpt_path:
        raise ConfigError(
            f"warm_start: {policy}, which this run started from, is gone: name another policy in "
            "model.init_args.policy.path and set warm_start to null"
        )
    folder = policy.parent
    devices = config.trainer.devices
    device = f"[{devices[0]}]" if isinstance(devices, list) else "1"
    one_device = ["--trainer.devices", device, "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    arguments = ["fit", "--config", shipped_config(config.warm_start), *one_device]
    arguments += ["--seed_everything", str(config.seed_everything)]
    last = folder / "checkpoints" / "last.ckpt"
    with _named(config.warm_start):
        asked = command_line.resolved(arguments)
    _check_adapters(asked, config)
    made_with = fingerprint(asked)
    source = finished([*root.glob("*"), folder.parent.parent], made_with) if config.reuse_warm_start else None
    if source is not None and not last.is_file():
        log.info("warm start: that of %s, made with the same; --reuse_warm_start false trains it anew", source.parent)
        take(source, folder)
        return policy
    command_line.check(asked["model"]["init_args"]["policy"]["path"])
    if not last.is_file():
        # A warm start that was interrupted before its first checkpoint leaves nothing to continue from.
        shutil.rmtree(folder, ignore_errors=True)
    resume = ["--ckpt_path", str(last)] if last.is_file() else []
    with _named(config.warm_start):
        command_line.run([*arguments, "--run_dir", str(folder), *resume])
    if not resume:  # the steps before an interruption may have been made with something else
        (folder / MADE_WITH).write_text(made_with)
    return policy


def _check_adapters(asked: Mapping[str, Any], config: Any) -> None:
    """Check that the run does not start an adapter on the adapter that its warm start exports.

    Args:
        asked: the resolved config of the warm start.
        config: the run's config.

    Raises:
        ConfigError: it does.
    """
    policy = asked["model"]["init_args"]["policy"]
    is_adapter = policy["lora"] is not None or (Path(policy["path"]) / "adapter_config.json").is_file()
    if is_adapter and not asked["export"]["merged"] and config.model.init_args.policy.lora is not None:
        raise ConfigError(
            "model.policy.lora: the warm start exports an adapter, whose training the run continues: omit lora here, "
            f"or set export.merged: true in {config.warm_start}"
        )


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Say in whose config a mistake is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"warm_start: in {file}: {error}") from error


def policy_of_the_run(checkpoint: str | None) -> Path:
    """The policy from which the run of a checkpoint started.

    Raises:
        ConfigError: the run has no checkpoint, or its policy was removed.
    """
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


def _wait_for(policy: Path, failed: Path | None, poll_s: float = 0.5) -> None:
    """Wait until the first process has exported the policy.

    Args:
        policy: put in place by a rename, so it is whole once it is there.
        failed: what the first process leaves where it fails: not every launcher ends the others then. ``None`` where
            they cannot agree on a name.
        poll_s: seconds between checks.

    Raises:
        ConfigError: the first process has failed.
    """
    waited = 0.0
    while not policy.is_dir():
        if failed is not None and failed.exists():
            raise ConfigError(f"warm_start: it failed in the first process, which says why ({failed})")
        time.sleep(poll_s)
        waited += poll_s
        if waited % REMIND_S < poll_s:
            log.info("waiting for the warm start of the first process to write %s", policy)
